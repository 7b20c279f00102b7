"""What two networks make of the same interventions: whether content decides, and whether Q sees what P sees.

The interventional discrepancy and the style sensitivity, which are losses too, are in `discrepancy.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def content_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """How often a network sees the content's class, whatever the style.

    mean over i, n of [argmax_k y_k^{do(s_i)}(C_n) = c_n], for logits (M, N, K) and classes c (N,). [ours], after
    the claim of the causal graph that content decides and style does not.
    """
    return (logits.argmax(-1) == labels).float().mean()


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear centred kernel alignment of two representations (N, D) and (N, E) of the same N inputs, in [0, 1].

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), the columns of X and Y centred; 0 where one of them is constant.
    With fewer inputs than dimensions it comes out high: compare values of equal N alone. Source: Kornblith et
    al., "Similarity of neural network representations revisited" (ICML 2019), section 3.
    """
    x, y = (values.double() - values.double().mean(0) for values in (first, second))
    # Grams of the inputs: the same norms, and N is smaller than D in most networks.
    of_x, of_y = x @ x.T, y @ y.T
    sizes = of_x.norm() * of_y.norm()
    return torch.where(sizes > 0, (of_x * of_y).sum() / sizes.clamp_min(1e-300), 0.0).float()


def grad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Where a network looks: the class activation map (N, H, W) of features (N, C, H, W).

    relu(sum_c a_c F_c) with a_c the mean over places of the gradient of the class's logit with respect to F_c.
    Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), eq. 1 and 2.
    """
    return activation_map(features, gradient.float().mean((2, 3), keepdim=True))


def activation_map(features: Tensor, importance: Tensor) -> Tensor:
    """relu(sum_c a_c F_c), (N, H, W), of features (N, C, H, W) and the importance (N, C, 1, 1) of each channel.

    Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), eq. 2.
    """
    # relu has no gradient at 0, where a map is empty; a clamp would have one.
    return (importance * features.float()).sum(1).relu()


def map_overlap(reference: Tensor, other: Tensor) -> Tensor:
    """How much of two non-negative maps (N, H, W) lies in the same places, in [0, 1].

    mean over n of sum_p min(a_p, b_p), each map divided by its own sum. Images whose reference is zero
    everywhere are left out; 0 where none remains. [ours]
    """
    a, b = (maps.flatten(1).double() for maps in (reference, other))
    sizes_a, sizes_b = a.sum(1, keepdim=True), b.sum(1, keepdim=True)
    common = torch.minimum(a / sizes_a.clamp_min(1e-300), b / sizes_b.clamp_min(1e-300)).sum(1)
    counted = sizes_a[:, 0] > 0
    return torch.where(counted, common, 0.0).sum().div(counted.sum().clamp_min(1)).float()
