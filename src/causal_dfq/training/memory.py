"""Batches that fit into a given memory. [ours]"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causal_dfq.errors import ConfigError
from causal_dfq.training.budget import Recipe
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.imprinting import BYTES_PER_VALUE
from causal_dfq.training.pool_training import PoolTraining

# Python, torch and its compiler before any network is there.
FRAMEWORK_BYTES = 1150 * 2**20
# P as captured, P folded, Q, and Adam's two moments; the gradient is measured.
_COPIES_OF_WEIGHTS = 5
# What the convolutions allocate beside tensors, and what the allocator keeps between them.
_OVERHEAD = 1.25
_FEWEST_IMAGES = 12


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step needs: for each image of a step that makes images, for each of the student's, and once."""

    synthesis_image: float
    student_image: float
    fixed: float

    def of(self, recipe: Recipe) -> float:
        """The most that one step needs, in bytes."""
        synthesis = self.synthesis_image * _synthesis_images(recipe)
        student = self.student_image * recipe.student_images
        return self.fixed + max(synthesis, student)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they live; `peak` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def step_memory(run: Equilibrium) -> StepMemory:
    """Measured on small batches: what both kinds of steps hold at most. The run is left as it was."""
    synthesis = run.synthesis
    assert not isinstance(synthesis, PoolTraining)
    usual, random = run.recipe, run.random.get_state()
    recipes = [
        replace(
            usual,
            generator_contents=4 * n,
            pool_batch=4 * n * usual.styles,
            student_contents=2 * n,
            hidden_contents=n,
            scenes=n,
        )
        for n in (2, 4)
    ]
    peaks = []
    for recipe in recipes:
        run.recipe = recipe
        peaks.append(
            (
                _peak(run, lambda: synthesis.loss(run.recipe, run.random)),
                _student_peak(run),
            )
        )
    run.recipe = usual
    run.random.set_state(random)
    # The difference of two batches leaves out what does not grow with them: weights and their gradients.
    more_generator = recipes[1].generator_images - recipes[0].generator_images
    more_student = recipes[1].student_images - recipes[0].student_images
    generator = (peaks[1][0] - peaks[0][0]) / more_generator
    student = (peaks[1][1] - peaks[0][1]) / more_student
    kept = run.budget.imprint_batches * BYTES_PER_VALUE * math.prod(run.image_shape)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in run.views.captured.state_dict().values())
    once = max(
        peaks[0][0] - generator * recipes[0].generator_images, peaks[0][1] - student * recipes[0].student_images, 0
    )
    fixed = FRAMEWORK_BYTES + _COPIES_OF_WEIGHTS * weights + once
    return StepMemory(_OVERHEAD * generator + kept, _OVERHEAD * student, fixed)


def _peak(run: Equilibrium, loss: Callable[[], tuple[Tensor, object]]) -> int:
    """Bytes of live tensors at most, forward and back."""
    tensors = LiveTensors()
    with tensors:
        value, _ = loss()
        value.backward()
        del value
    for network in (run.synthesis.state, run.quantized):
        network.zero_grad(set_to_none=True)
    return tensors.peak


def _student_peak(run: Equilibrium) -> int:
    """The same of a step of Q; where none trains it, it is calibrated on what P makes of a batch."""
    if run.budget.trains_student:
        return _peak(run, lambda: run.student_loss(run.student_batch()))
    tensors = LiveTensors()
    with tensors:
        batch = run.student_batch()
        del batch
    return tensors.peak


def fit_recipe(recipe: Recipe, memory: StepMemory, limit: int) -> Recipe:
    """The recipe with batches no larger than `limit` bytes allow; the mix of a batch stays as near as it can.

    Raises:
        ConfigError: even the smallest batch does not fit.
    """
    free = limit - memory.fixed
    smallest = _FEWEST_IMAGES * max(memory.synthesis_image, memory.student_image)
    if free < smallest:
        raise ConfigError(
            f"memory limit {limit / 2**30:.2f} GB is too small: this network needs at least "
            f"{(memory.fixed + smallest) / 2**30:.2f} GB at this input size"
        )
    synthesis_share = min(1.0, free / (memory.synthesis_image * _synthesis_images(recipe)))
    student_share = min(1.0, free / (memory.student_image * recipe.student_images))
    return replace(
        recipe,
        # Twins halve a batch of the generator.
        generator_contents=2 * int(synthesis_share * recipe.generator_contents / 2),
        student_contents=max(2, int(student_share * recipe.student_contents)),
        hidden_contents=min(recipe.hidden_contents, max(1, int(student_share * recipe.hidden_contents))),
        scenes=int(student_share * recipe.scenes),
        pool_batch=max(1, int(synthesis_share * recipe.pool_batch)),
    )


def _synthesis_images(recipe: Recipe) -> int:
    """Images in the larger of the two steps that make images."""
    return max(recipe.generator_images, recipe.pool_batch)
