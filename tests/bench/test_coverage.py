"""The coverage bench: its list, and its page from made-up results."""

from dataclasses import asdict
from pathlib import Path

import torchvision.models
from torchvision.models import list_models

from bench.coverage import Covered, write_page
from bench.coverage_list import SUBJECTS


def test_every_classifier_of_torchvision_and_sixty_of_timm_are_listed_once() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len(set(names)) == len(names)
    assert {f"torchvision:{name}" for name in list_models(module=torchvision.models)} <= set(names)
    assert sum(name.startswith("timm:") for name in names) >= 60


def test_the_page_counts_what_passes_and_says_what_does_not(tmp_path: Path) -> None:
    passing = Covered("torchvision:resnet18", 64, 11_689_512, True, 32, 21, 21, 1.0, 0.99999, 1.0, 0.0, 11.8, 30.0)
    failing = Covered("torchvision:other", 64, 1000, error="aten.strange.default at a|b has no form in ONNX")
    results = {
        "networks": [{**asdict(covered), "commit": "0123456789ab"} for covered in (passing, failing)],
        "machine": {"cores": 2, "processor": "processor"},
        "versions": {"torch": "2.14"},
    }
    write_page(results, tmp_path / "coverage.md")
    page = (tmp_path / "coverage.md").read_text()
    assert "## torchvision: 1 of 2 pass" in page
    assert "| `resnet18` | 64 | 11.7 M | yes | 21 of 21 | 1.00000 | 1.0000 | 100 % | 11.8 | passes |" in page
    assert "aten.strange.default at a\\|b has no form in ONNX |" in page
    columns = {line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("| `")}
    assert columns == {11}
