"""Images made once for several runs: what synthesis gives depends on the network and the seed, not on the bits."""

from __future__ import annotations

import fcntl
import hashlib
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

import causal_dfq
from bench.environment import describe
from causal_dfq.files import detached_state, write_tensors
from causal_dfq.pipeline import arithmetic
from causal_dfq.training.budget import pays_for_compilation
from causal_dfq.training.checkpoint import restore_state, run_state
from causal_dfq.training.equilibrium import Equilibrium

_OF_SYNTHESIS = ("generator.", "generator_optimizer.", "imprint_optimizer.", "random")
_SECONDS, _MAKER = "seconds", "maker"
# Of the package's sources, what no run reaches.
_BESIDE_RUNS = ("export", "cli.py")
_BUDGET_OF_IMAGES = ("warmup_steps", "imprint_batches", "imprint_iterations")
# What the recipe has for Q alone. An entry that is missing here costs time, never a wrong reuse.
_RECIPE_OF_STUDENT = frozenset(
    {
        "student_contents",
        "hidden_contents",
        "scenes",
        "reconstruction_images",
        "low_pass",
        "blended",
        "imprinted",
        "weight_lr",
        "bias_lr",
        "step_size_lr",
        "zero_point_lr",
        "temperature",
        "matching_weight",
        "feature_weight",
        "discrepancy_weight",
        "contrastive_weight",
        "contrastive_tau",
        "label_weight",
        "label_confidence",
        "attention_weight",
    }
)


def hash_of_sources(package: Path) -> str:
    """SHA-256 of the sources of a package that a run can reach."""
    sha = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _BESIDE_RUNS:
            sha.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    return sha.hexdigest()


# Taken at import: later the files may be others than those that this process runs.
_SOURCES = hash_of_sources(Path(causal_dfq.__file__).parent)


def synthesize(run: Equilibrium, path: Path) -> float:
    """Brings a run to its calibration, by the file of an earlier run or by making the file; the bits are the same.

    A file that another package, network, recipe, budget, seed, processor or number of threads made is made anew.

    Returns:
        The seconds that making the images took, then or now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        # Of two runs side by side that need the same images, one makes them.
        fcntl.flock(lock, fcntl.LOCK_EX)
        maker = maker_of(run)
        kept = _kept(path, maker)
        if kept is None:
            return _make(run, path, maker)
    made, seconds = kept
    restore_state(run, {**run_state(run), **made})
    return seconds


def maker_of(run: Equilibrium) -> str:
    """SHA-256 of what images and seconds depend on: sources, network, recipe, budget, seed, machine and threads."""
    sha = hashlib.sha256(_SOURCES.encode())
    for name, tensor in sorted(run.views.captured.state_dict().items()):
        sha.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    recipe = {name: value for name, value in asdict(run.recipe).items() if name not in _RECIPE_OF_STUDENT}
    budget = {name: getattr(run.budget, name) for name in _BUDGET_OF_IMAGES}
    # Compiled arithmetic rounds otherwise.
    is_compiled = pays_for_compilation(run.budget, run.recipe, run.image_shape)
    place = (type(run.synthesis).__name__, run.image_shape, run.pixel_bounds, run.seed, str(run.device), is_compiled)
    told = (torch.__version__, sorted(recipe.items()), sorted(budget.items()), place, _computer(run.device))
    sha.update(repr(told).encode())
    return sha.hexdigest()


def _computer(device: torch.device) -> tuple[str, str | None, int]:
    """Processor, accelerator and threads."""
    machine = describe(str(device))["machine"]
    return machine["processor"], machine.get("accelerator"), torch.get_num_threads()


def _kept(path: Path, maker: str) -> tuple[dict[str, Tensor], float] | None:
    """State and seconds of a file, where it is there and of this maker."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
        if told.get(_MAKER) != maker:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}, float(told[_SECONDS])  # noqa: SIM118


def _make(run: Equilibrium, path: Path, maker: str) -> float:
    started = time.monotonic()
    for step in range(run.steps_before_calibration):
        with arithmetic(run):
            run.run_step(step)
    state = {name: value for name, value in run_state(run).items() if name.startswith(_OF_SYNTHESIS)}
    seconds = time.monotonic() - started
    write_tensors(path, detached_state(state), {_SECONDS: str(seconds), _MAKER: maker})
    return seconds
