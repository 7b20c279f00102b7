"""A dozen networks of torchvision and timm, from capture to a file that computes what the simulation does."""

import pytest

from bench.coverage import cover
from bench.coverage_list import SUBJECTS
from causal_dfq.training.budget import BUDGETS, LARGE_IMAGE_BUDGETS

NAMES = [
    "torchvision:googlenet",
    "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:regnet_x_400mf",
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
    "timm:convnext_atto",
    "timm:efficientnet_lite0",
    "timm:lcnet_050",
    "timm:mobilenetv1_100",
]


@pytest.mark.parametrize("name", NAMES)
def test_networks_that_people_bring_become_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It measures with budgets of its own.
    for budgets in (BUDGETS, LARGE_IMAGE_BUDGETS):
        monkeypatch.setitem(budgets, "fast", budgets["fast"])
    covered = cover(next(subject for subject in SUBJECTS if subject.name == name))
    assert covered.error == ""
    assert covered.fused > 0
    assert covered.worst_steps <= 1.001
