"""The structural causal model of synthetic images and of the two networks that look at them.

    C := (c, u)      content: the class, or a blend of two, and variation inside the class
    S := s           style: what must not matter
    X := G(C, S)     image
    Y_P := P(X)      logits of the pre-trained network
    Y_Q := Q(X)      logits of the quantized network

[paper] that content and style are separate causes of the image and that the discrepancy of P and Q is
measured under interventions; [ours] these equations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_dfq.errors import ConfigError

CONTENT, STYLE, IMAGE = "content", "style", "image"
PRETRAINED, QUANTIZED = "pretrained", "quantized"


@dataclass(frozen=True)
class Content:
    """The relevant factors: the class and the variation inside it.

    A content may lie between two classes: `second_share`, in [0, 0.5], is how far it lies towards the second.

    Args:
        labels: the class, or the nearer one (N,).
        variation: (N, U).
        second_labels: the class that a blend lies towards (N,).
        second_share: (N,); 0 for a content of one class.
        times: how often the first N / times contents come, one round of them after the other.
    """

    labels: Tensor
    variation: Tensor
    second_labels: Tensor
    second_share: Tensor
    times: int = 1

    @classmethod
    def of_classes(cls, labels: Tensor, variation: Tensor) -> Content:
        """Contents of one class each: labels (N,), variation (N, U)."""
        return cls(labels, variation, labels, torch.zeros(len(labels), device=labels.device))

    def __len__(self) -> int:
        return len(self.labels)

    def repeat(self, times: int) -> Content:
        """The same contents, `times` over: (times * N)."""
        return Content(
            self.labels.repeat(times),
            self.variation.repeat(times, 1),
            self.second_labels.repeat(times),
            self.second_share.repeat(times),
            self.times * times,
        )

    @property
    def distinct(self) -> Content:
        """One round of the contents: (N / times)."""
        count = len(self) // self.times
        return Content(
            self.labels[:count], self.variation[:count], self.second_labels[:count], self.second_share[:count]
        )

    def blend(self, probability: float, random: torch.Generator) -> Content:
        """Each content, with this probability, moved towards the class of another one of the batch.

        How far is uniform up to half way. Between classes, where decisions are made, images of single
        classes never lie. [ours], after the superposed embeddings of Qimera (Choi et al., NeurIPS 2021).
        """
        count = len(self)
        others = torch.randperm(count, generator=random).to(self.labels.device)
        share = 0.5 * torch.rand(count, generator=random)
        is_blended = torch.rand(count, generator=random) < probability
        share = torch.where(is_blended, share, 0.0).to(self.labels.device)
        second_labels = self.labels[others]
        # Half way from a class to itself there is that class, not a blend.
        share = torch.where(second_labels == self.labels, 0.0, share)
        return Content(self.labels, self.variation, second_labels, share)


@dataclass(frozen=True)
class Variable:
    """A node of the graph: a symbol, its direct causes and the mechanism that makes it from them.

    A variable without parents is exogenous: its mechanism draws `count` values from a
    torch.Generator. `equation` is the mechanism in print.
    """

    name: str
    symbol: str
    equation: str
    parents: tuple[str, ...]
    mechanism: Callable[..., Any]


@dataclass(frozen=True)
class StructuralCausalModel:
    """Variables in causal order, each after its parents. Immutable: `do` gives another model."""

    variables: Mapping[str, Variable]

    def do(self, **values: Any) -> StructuralCausalModel:
        """The model under an intervention: the named mechanisms are replaced by the given values.

        The edges into an intervened variable are cut; every other mechanism stays as it is.

        Raises:
            ConfigError: a name is no variable of the model.
        """
        variables = dict(self.variables)
        for name, value in values.items():
            if name not in variables:
                known = ", ".join(variables)
                raise ConfigError(f"do({name}=...): the causal model has no variable {name!r}, only {known}")
            variable = variables[name]
            variables[name] = replace(
                variable,
                equation=f"do({variable.symbol} = {variable.symbol.lower()}*)",
                parents=(),
                mechanism=lambda count, random, value=value: value,
            )
        return StructuralCausalModel(variables)

    def sample(self, name: str, count: int, random: torch.Generator) -> Any:
        """A value of the variable, and of the causes it needs, for `count` units."""
        return self._evaluate(name, count, random, {})

    def _evaluate(self, name: str, count: int, random: torch.Generator, known: dict[str, Any]) -> Any:
        if name not in known:
            variable = self.variables[name]
            if variable.parents:
                causes = [self._evaluate(parent, count, random, known) for parent in variable.parents]
                known[name] = variable.mechanism(*causes)
            else:
                known[name] = variable.mechanism(count, random)
        return known[name]

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(cause, effect) by symbol."""
        return tuple(
            (self.variables[parent].symbol, variable.symbol)
            for variable in self.variables.values()
            for parent in variable.parents
        )

    def __str__(self) -> str:
        width = max(len(variable.symbol) for variable in self.variables.values())
        equations = [f"{v.symbol:<{width}} := {v.equation}" for v in self.variables.values()]
        return "\n".join([*equations, "edges: " + ", ".join(f"{cause} -> {effect}" for cause, effect in self.edges)])

    def draw(self, path: Path) -> None:
        """Writes the graph as a picture (the format by the ending); intervened variables are boxed."""
        from causal_dfq.causal.drawing import draw_graph

        draw_graph(self, path)


def image_model(
    classes: int,
    variation_size: int,
    style_size: int,
    generator: Callable[[Content, Tensor], Tensor],
    pretrained: Callable[[Tensor], Any],
    quantized: Callable[[Tensor], Any],
    device: torch.device,
) -> StructuralCausalModel:
    """The model of docs/method.md [ours]: C -> X <- S, X -> Y_P, X -> Y_Q, with these networks as mechanisms.

    Draws come from a generator on the CPU, so that a seed means the same on every device.
    """

    def draw_content(count: int, random: torch.Generator) -> Content:
        labels = torch.randint(classes, (count,), generator=random)
        variation = torch.randn(count, variation_size, generator=random)
        return Content.of_classes(labels.to(device), variation.to(device))

    def draw_style(count: int, random: torch.Generator) -> Tensor:
        return torch.randn(count, style_size, generator=random).to(device)

    variables = (
        Variable(CONTENT, "C", f"(c, u), c ~ Uniform{{1..{classes}}}, u ~ N(0, I)", (), draw_content),
        Variable(STYLE, "S", "s ~ N(0, I)", (), draw_style),
        Variable(IMAGE, "X", "G(C, S)", (CONTENT, STYLE), generator),
        Variable(PRETRAINED, "Y_P", "P(X)", (IMAGE,), pretrained),
        Variable(QUANTIZED, "Y_Q", "Q(X)", (IMAGE,), quantized),
    )
    return StructuralCausalModel({variable.name: variable for variable in variables})


def style_interventions(
    model: StructuralCausalModel, content: Content, styles: int, random: torch.Generator
) -> StructuralCausalModel:
    """The model under do(C = content), do(S = s_1), ..., do(S = s_M), as one batch.

    Row i * N + n of every variable is content n under style i; each content meets its own styles.
    """
    count = len(content) * styles
    style = model.sample(STYLE, count, random)
    return model.do(content=content.repeat(styles), style=style)
