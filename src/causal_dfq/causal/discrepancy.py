"""The interventional discrepancy of two networks, and what must come down with it.

Logits under style interventions are (M, N, K): style i, content n, class k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def kl_divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (..., K), summed over classes: shape (...)."""
    return (target.exp() * (target - prediction)).sum(-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) in float32."""
    return functional.log_softmax(logits.float() / temperature, -1)


def matching_discrepancy(pretrained: Tensor, quantized: Tensor, temperature: float = 1.0) -> Tensor:
    """Plain distillation: mean KL(p_P || p_Q) over all images, logits (..., K) [common]."""
    return kl_divergence(log_probabilities(pretrained, temperature), log_probabilities(quantized, temperature)).mean()


def _style_pairs(styles: int) -> tuple[Tensor, Tensor]:
    """All ordered pairs i != j."""
    first, second = torch.meshgrid(torch.arange(styles), torch.arange(styles), indexing="ij")
    different = first != second
    return first[different], second[different]


def interventional_discrepancy(pretrained: Tensor, quantized: Tensor, temperature: float = 1.0) -> Tensor:
    """The discrepancy reduction loss, KL form.

    Mean over i != j and n of KL(p_P^{do(s_i)}(Y | C_n) || p_Q^{do(s_j)}(Y | C_n)): Q under one style is
    held to what P says under another. [paper] aligns intervened distributions; [notes] by the KL
    divergence with the content fixed; [ours] this sum over pairs.

    Raises:
        ValueError: fewer than two styles.
    """
    if len(pretrained) < 2:
        raise ValueError(f"an interventional discrepancy needs at least 2 styles, got {len(pretrained)}")
    first, second = _style_pairs(len(pretrained))
    target = log_probabilities(pretrained, temperature)
    prediction = log_probabilities(quantized, temperature)
    return kl_divergence(target[first], prediction[second]).mean()


def style_sensitivity(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """How far one network's output moves under do(S): mean KL(p^{do(s_i)} || p^{do(s_j)}), i != j [ours]."""
    return interventional_discrepancy(logits, logits, temperature)


def contrastive_discrepancy(pretrained: Tensor, quantized: Tensor, tau: float) -> Tensor:
    """The discrepancy reduction loss, contrastive form, on embeddings (M, N, D).

    For Q under style j and P under another style i: the positive is the same content, the negatives are
    the other contents of the batch; phi = cosine / tau. Mean cross entropy over i != j and n. [notes] a
    noise-contrastive estimate of the conditionals is used; [ours] its form, after ReLIC
    (Mitrovic et al., arXiv 2010.07922, eq. 4).

    Raises:
        ValueError: fewer than two styles.
    """
    if len(pretrained) < 2:
        raise ValueError(f"a contrastive discrepancy needs at least 2 styles, got {len(pretrained)}")
    first, second = _style_pairs(len(pretrained))
    anchors = functional.normalize(quantized.float(), dim=-1)[second]
    others = functional.normalize(pretrained.float(), dim=-1)[first]
    similarity = anchors @ others.transpose(1, 2) / tau
    target = torch.arange(similarity.shape[1], device=similarity.device).expand(len(first), -1)
    return functional.cross_entropy(similarity.flatten(0, 1), target.flatten())
