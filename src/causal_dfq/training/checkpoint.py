"""The state of a run on disk, so that an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from causal_dfq.allocator import give_back_freed_memory
from causal_dfq.errors import OutputError
from causal_dfq.files import detached_state, write_tensors
from causal_dfq.quantizer.modules import WeightQuantizer
from causal_dfq.quantizer.residual_grids import step_size_leaders, tie_step_sizes
from causal_dfq.training.equilibrium import Equilibrium

CHECKPOINT_FILE = "checkpoint.safetensors"
SECONDS_BETWEEN = 15.0
_OPTIMIZER_KEYS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a run has come: steps done, seconds spent, and what it is a run of."""

    steps_done: int
    seconds: float
    fingerprint: dict[str, str]


def run_state(run: Equilibrium) -> dict[str, Tensor]:
    """Every tensor that the next step depends on, by name."""
    state = {f"generator.{name}": tensor for name, tensor in run.synthesis.state.state_dict().items()}
    state |= {f"quantized.{name}": tensor for name, tensor in run.quantized.state_dict().items()}
    for prefix, optimizer in _optimizers(run).items():
        for index, parameter in enumerate(_parameters(optimizer)):
            for key in _OPTIMIZER_KEYS:
                value = optimizer.state.get(parameter, {}).get(key)
                if value is not None:
                    state[f"{prefix}.{index}.{key}"] = value
    rates = [group["base_lr"] for group in run.student_optimizer.param_groups]
    state["student_rates"] = torch.tensor(rates, dtype=torch.float64)
    state["weight_bits"] = torch.tensor([quantizer.bits for quantizer in _weight_quantizers(run)])
    state["step_size_leaders"] = step_size_leaders(run.quantized)
    state["random"] = run.random.get_state()
    return state


@torch.no_grad()
def restore_state(run: Equilibrium, state: dict[str, Tensor]) -> None:
    """Puts a run into a state that `run_state` gave."""
    for prefix, module in (("generator.", run.synthesis.state), ("quantized.", run.quantized)):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    for quantizer, bits in zip(_weight_quantizers(run), state["weight_bits"].tolist(), strict=True):
        quantizer.bits = bits
    run.restore_trainable_zero_points()
    tie_step_sizes(run.quantized, state["step_size_leaders"])
    for prefix, optimizer in _optimizers(run).items():
        for index, parameter in enumerate(_parameters(optimizer)):
            keys = [key for key in _OPTIMIZER_KEYS if f"{prefix}.{index}.{key}" in state]
            if keys:
                optimizer.state[parameter] = {
                    key: _placed(state[f"{prefix}.{index}.{key}"], parameter, key) for key in keys
                }
    for group, rate in zip(run.student_optimizer.param_groups, state["student_rates"].tolist(), strict=True):
        group["base_lr"] = rate
    run.random.set_state(state["random"])


def _weight_quantizers(run: Equilibrium) -> list[WeightQuantizer]:
    return [module for module in run.quantized.modules() if isinstance(module, WeightQuantizer)]


def _placed(value: Tensor, parameter: Tensor, key: str) -> Tensor:
    if key == "step":
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)


def _optimizers(run: Equilibrium) -> dict[str, torch.optim.Optimizer]:
    optimizers: dict[str, torch.optim.Optimizer] = {
        "generator_optimizer": run.synthesis.optimizer,
        "student_optimizer": run.student_optimizer,
    }
    imprints = run.synthesis.imprints
    return optimizers if imprints is None else {**optimizers, "imprint_optimizer": imprints.optimizer}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class CheckpointFile:
    """The checkpoint of a run folder; `due` tells when the next one should be written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CHECKPOINT_FILE
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether the last write lies long enough back."""
        return time.monotonic() - self._written >= SECONDS_BETWEEN

    def write(self, run: Equilibrium, progress: Progress) -> None:
        """Replaces the checkpoint; the old one stays until the new one is whole.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        # The copies that a file needs would come on top of what a step left free in pieces.
        give_back_freed_memory()
        metadata = {
            "steps_done": str(progress.steps_done),
            "seconds": progress.seconds.hex(),
            "fingerprint": json.dumps(progress.fingerprint),
        }
        write_tensors(self.path, detached_state(run_state(run)), metadata)
        self._written = time.monotonic()

    def read(self) -> tuple[Progress, dict[str, Tensor]]:
        """The progress and the state of the unfinished run.

        Raises:
            OutputError: the file is damaged.
        """
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress = Progress(
                int(metadata["steps_done"]),
                float.fromhex(metadata["seconds"]),
                json.loads(metadata["fingerprint"]),
            )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise OutputError(f"{self.path} is damaged: {error}; remove the folder and start again") from error
        return progress, state

    def remove(self) -> None:
        """Deletes the checkpoint of a finished run."""
        self.path.unlink(missing_ok=True)
