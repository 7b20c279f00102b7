"""The causal model: sampling, interventions, printing, drawing."""

from pathlib import Path

import pytest
import torch

from causal_dfq.causal.graph import (
    CONTENT,
    IMAGE,
    QUANTIZED,
    STYLE,
    Content,
    StructuralCausalModel,
    image_model,
    style_interventions,
)
from causal_dfq.errors import ConfigError


def model() -> StructuralCausalModel:
    def image(content: Content, style: torch.Tensor) -> torch.Tensor:
        return content.labels[:, None] * 100 + style

    return image_model(7, 3, 2, image, lambda x: x + 1, lambda x: x - 1, torch.device("cpu"))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_edges_are_those_of_the_method() -> None:
    assert set(model().edges) == {("C", "X"), ("S", "X"), ("X", "Y_P"), ("X", "Y_Q")}


def test_intervention_cuts_the_edges_into_its_variable_only() -> None:
    intervened = model().do(image=torch.zeros(1))
    assert set(intervened.edges) == {("X", "Y_P"), ("X", "Y_Q")}
    assert set(model().do(style=torch.zeros(1, 2)).edges) == set(model().edges)


def test_do_style_keeps_the_content_and_replaces_the_style() -> None:
    content = Content.of_classes(torch.tensor([2, 5]), torch.zeros(2, 3))
    intervened = model().do(content=content, style=torch.tensor([[0.25, 0.5], [0.75, 1.0]]))
    assert intervened.sample(IMAGE, 2, random()).tolist() == [[200.25, 200.5], [500.75, 501.0]]
    assert intervened.sample(QUANTIZED, 2, random()).tolist() == [[199.25, 199.5], [499.75, 500.0]]


def test_do_leaves_the_model_as_it_was() -> None:
    original = model()
    before = str(original)
    original.do(style=torch.zeros(1, 2))
    assert str(original) == before


def test_unknown_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no variable 'colour', only content, style"):
        model().do(colour=1)


def test_same_seed_same_draw() -> None:
    first, second = (model().sample(IMAGE, 5, random(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model().sample(IMAGE, 5, random(4)))


def test_classes_are_drawn_uniformly() -> None:
    counts = model().sample(CONTENT, 7000, random()).labels.bincount(minlength=7)
    assert (counts - 1000).abs().max() < 150


def test_blends_lie_at_most_half_way_towards_a_class_of_the_batch() -> None:
    content = Content.of_classes(torch.arange(1000) % 7, torch.randn(1000, 3, generator=random()))
    blended = content.blend(0.25, random())
    moved = blended.second_share > 0
    # One in seven meets its own class, and stays.
    assert 0.17 < float(moved.float().mean()) < 0.26
    assert bool((blended.second_labels != content.labels)[moved].all())
    assert 0.2 < float(blended.second_share[moved].mean()) < 0.3
    assert float(blended.second_share.max()) <= 0.5
    assert torch.equal(blended.labels, content.labels)
    assert torch.equal(blended.second_labels.bincount(), content.labels.bincount())
    assert int((blended.second_labels != content.labels).sum()) > 700


def test_no_content_is_blended_at_probability_zero() -> None:
    content = Content.of_classes(torch.tensor([2, 5]), torch.zeros(2, 3))
    assert content.blend(0.0, random()).second_share.tolist() == [0, 0]


def test_blends_are_repeated_whole() -> None:
    content = Content(
        torch.tensor([1, 2]), torch.tensor([[0.0], [1.0]]), torch.tensor([3, 4]), torch.tensor([0.1, 0.2])
    )
    repeated = content.repeat(2)
    assert repeated.labels.tolist() == [1, 2, 1, 2]
    assert repeated.variation.flatten().tolist() == [0, 1, 0, 1]
    assert repeated.second_labels.tolist() == [3, 4, 3, 4]
    torch.testing.assert_close(repeated.second_share, torch.tensor([0.1, 0.2, 0.1, 0.2]))
    assert repeated.repeat(3).times == 6
    assert repeated.repeat(3).distinct.second_labels.tolist() == [3, 4]
    assert len(repeated.distinct) == 2


def test_style_interventions_lie_style_by_style() -> None:
    content = model().sample(CONTENT, 4, random())
    intervened = style_interventions(model(), content, 3, random(1))
    assert torch.equal(intervened.sample(CONTENT, 0, random()).labels.view(3, 4), content.labels.expand(3, 4))
    styles = intervened.sample(STYLE, 0, random()).view(3, 4, 2)
    assert len(styles.flatten(0, 1).unique(dim=0)) == 12


def test_print_tells_equations_edges_and_interventions() -> None:
    text = str(model().do(style=torch.zeros(1, 2)))
    assert "S   := do(S = s*)" in text
    assert "X   := G(C, S)" in text
    assert "C -> X" in text


def test_drawing_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "graph.png"
    model().do(style=torch.zeros(1, 2)).draw(path)
    assert path.read_bytes().startswith(b"\x89PNG")
