"""Evaluation data never reaches quantization, and arrows run one way."""

import ast
import inspect
from pathlib import Path

import pytest

import causal_dfq

ROOT = Path(causal_dfq.__file__).parent
LABELLED = ("causal_dfq.data", "causal_dfq.evaluation", "causal_dfq.zoo.training_data", "causal_dfq.zoo.train")
ABOVE = {
    "network": ("quantizer", "causal", "synthesis", "training", "pipeline", "quantized", "run_folder", "cli", "export"),
    "quantizer": ("causal", "synthesis", "training", "pipeline", "quantized", "run_folder", "cli"),
    "causal": ("quantizer", "synthesis", "training", "pipeline", "quantized", "run_folder", "cli", "network"),
    "synthesis": ("quantizer", "training", "pipeline", "quantized", "run_folder", "cli"),
    "training": ("pipeline", "quantized", "run_folder", "cli", "export"),
    "export": ("pipeline", "run_folder", "cli"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def quantizing_modules() -> list[Path]:
    inside = [path for folder in ABOVE for path in (ROOT / folder).glob("*.py")]
    return [*inside, ROOT / "pipeline.py", ROOT / "run_folder.py", ROOT / "quantized.py"]


@pytest.mark.parametrize("path", quantizing_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_quantization_cannot_read_labelled_images(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith(LABELLED)]


@pytest.mark.parametrize("folder", ABOVE)
def test_nothing_knows_what_is_above_it(folder: str) -> None:
    forbidden = tuple(f"causal_dfq.{name}" for name in ABOVE[folder])
    for path in (ROOT / folder).glob("*.py"):
        assert not [name for name in imports(path) if name.startswith(forbidden)], path


def test_quantize_takes_no_images() -> None:
    names = set(inspect.signature(causal_dfq.quantize).parameters)
    assert names == {
        *("network", "bits", "input_shape", "protocol", "effort", "mean", "std", "device", "seed"),
        *("method", "memory_limit", "size_budget", "on_step"),
    }


def test_nothing_is_unpickled() -> None:
    for path in ROOT.rglob("*.py"):
        assert not [name for name in imports(path) if name in ("pickle", "torch.load", "dill")], path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "torch.load" not in [ast.unparse(call.func) for call in calls], path
