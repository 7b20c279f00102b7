"""The coverage bench: its list, and its page from made-up results."""

from dataclasses import asdict
from pathlib import Path

import torch
import torchvision.models
from torch import nn
from torchvision.models import list_models

from bench.coverage import Covered, with_random_weights, write_page
from bench.coverage_list import SUBJECTS, Subject


def test_every_classifier_of_torchvision_and_sixty_of_timm_are_listed_once() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len(set(names)) == len(names)
    assert {f"torchvision:{name}" for name in list_models(module=torchvision.models)} <= set(names)
    assert sum(name.startswith("timm:") for name in names) >= 60


def page_of(networks: list[Covered], folder: Path) -> str:
    """What is written of these networks."""
    results = {
        "networks": [{**asdict(covered), "commit": "0123456789ab", "processor": "processor"} for covered in networks],
        "machine": {"cores": 2, "processor": "processor"},
        "versions": {"torch": "2.14"},
    }
    write_page(results, folder / "coverage.md")
    return (folder / "coverage.md").read_text()


def test_the_page_counts_what_passes_and_says_what_does_not(tmp_path: Path) -> None:
    passing = Covered("torchvision:resnet18", 64, 11_689_512, True, 32, 21, 21, 1.0, 0.99999, 1.0, 0.0, 11.8, 30.0)
    failing = Covered("torchvision:other", 64, 1000, error="aten.strange.default at a|b has no form in ONNX")
    page = page_of([passing, failing], tmp_path)
    assert "## torchvision: 1 of 2 pass" in page
    assert "| `resnet18` | 64 | 11.7 M | yes | 21 of 21 | 1.00000 | 1.0000 | 100 % | 11.8 | passes |" in page
    assert "aten.strange.default at a\\|b has no form in ONNX |" in page
    assert "rows of 0.0000" not in page
    columns = {line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("| `")}
    assert columns == {11}


def test_the_page_says_what_a_passing_cosine_of_zero_is(tmp_path: Path) -> None:
    passing = Covered("torchvision:resnet18", 64, 11_689_512, True, 32, 21, 21, 1.0, 0.0, 1.0, 0.0, 11.8, 30.0)
    page = page_of([passing], tmp_path)
    assert "where logits that are the same count as 1, all\nzeros too" in page
    assert "In rows of 0.0000 that pass, an image whose logits are all zero was counted as 0." in page


class Tokens(nn.Module):
    """A class token of nothing, a head of nothing, and a BatchNorm that has seen no image."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 64))
        self.head = nn.Parameter(torch.zeros(64, 8))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.norm(images).mean((1, 2, 3)).view(-1, 1, 1) + self.class_token).flatten(1) @ self.head


def test_random_weights_have_tokens_as_large_as_patches_heads_that_tell_and_statistics_of_scenes() -> None:
    network = with_random_weights(Subject("timm:tokens", 16, Tokens))
    assert isinstance(network, Tokens)
    assert 0.3 < network.class_token.std() < 0.7
    assert 0.01 < network.head.std() < 0.03
    assert network.norm.running_var is not None
    assert 0 < float(network.norm.running_var.max()) < 10
    assert not torch.equal(network.norm.running_var, torch.ones(3))
    assert not network.training
