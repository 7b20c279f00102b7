"""Batches that fit into memory."""

import copy
import math

import pytest
import torch

from causal_dfq.config import make_options, parse_bytes
from causal_dfq.errors import ConfigError
from causal_dfq.pipeline import prepare, resolve_device, start_run
from causal_dfq.training.budget import Recipe, recipe_for
from causal_dfq.training.imprint_synthesis import ImprintSynthesis
from causal_dfq.training.layer_rounding import most_images
from causal_dfq.training.memory import FRAMEWORK_BYTES, LiveTensors, StepMemory, fit_recipe, step_memory
from tests.networks import Normalized, Residual, trained

MB = 2**20


@pytest.mark.parametrize(
    ("text", "expected"), [("2GB", 2 * 2**30), ("1.5g", 3 * 2**29), ("800 MB", 800 * MB), ("1GiB", 2**30), ("77", 77)]
)
def test_memory_is_read_as_people_write_it(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "two", "1 PB", "1e3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 2GB"):
        parse_bytes(text)


def test_a_batch_that_fits_stays() -> None:
    assert fit_recipe(Recipe(), StepMemory(MB, MB, 100 * MB), 300 * MB) == Recipe()


def test_the_larger_batch_shrinks_until_it_fits() -> None:
    memory = StepMemory(MB, MB, 100 * MB)
    fitted = fit_recipe(Recipe(), memory, 164 * MB)
    assert fitted.generator_images == 64
    assert fitted.student_images == Recipe().student_images
    assert memory.of(fitted) <= 164 * MB


def test_a_shrunk_batch_keeps_its_mix_and_twins() -> None:
    memory = StepMemory(MB, 4 * MB, 0)
    fitted = fit_recipe(Recipe(), memory, 129 * MB)
    assert memory.of(fitted) <= 129 * MB
    assert (fitted.student_contents, fitted.hidden_contents, fitted.scenes) == (9, 6, 2)
    assert fitted.generator_contents % 2 == 0


def test_too_little_memory_names_what_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.51 GB"):
        fit_recipe(Recipe(), StepMemory(MB, 2 * MB, 500 * MB), 510 * MB)


def test_live_tensors_are_counted_while_they_live() -> None:
    with LiveTensors() as tensors:
        kept = torch.zeros(1000)
        view = kept.view(10, 100)[2:]
        passing = view + 1
        del passing
        kept.add_(1)
        last = torch.ones(500)
    assert tensors.peak == 4 * (1000 + 800)
    assert tensors.live == 4 * (1000 + 500)
    del last, view


def test_the_way_back_counts() -> None:
    def peak(is_trained: bool) -> int:
        values = torch.zeros(1000, requires_grad=is_trained)
        with LiveTensors() as tensors:
            result = (values.exp() * 2).sum()
            if is_trained:
                result.backward()
        return tensors.peak

    assert peak(True) >= peak(False) + 4 * 1000


def test_measured_memory_is_by_image_and_leaves_the_run_as_it_was() -> None:
    options = make_options(bits="w4a4", input_shape=(3, 16, 16))
    run = start_run(prepare(trained(Residual()), options), options, resolve_device("cpu"))
    random, state = run.random.get_state(), copy.deepcopy(run.quantized.state_dict())
    step_memory(run)
    assert run.recipe == recipe_for((3, 16, 16))
    assert torch.equal(run.random.get_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.quantized.state_dict().items())
    assert all(parameter.grad is None for parameter in run.quantized.parameters())


@pytest.mark.parametrize("side", [8, 72])
def test_without_a_generator_a_limit_decides_the_batches_of_imprinted_scenes(side: int) -> None:
    shape = (3, side, side)
    # Small images without BatchNorm, or large ones with it.
    network = Normalized() if side == 8 else trained(Residual())
    free = make_options(bits="w8a8", input_shape=shape)
    run = start_run(prepare(network, free), free, resolve_device("cpu"))
    assert isinstance(run.synthesis, ImprintSynthesis)
    memory = step_memory(run)
    with LiveTensors() as tensors:
        loss, _ = run.synthesis.loss(run.recipe, run.random)
        loss.backward()
        del loss
    foretold = memory.fixed - FRAMEWORK_BYTES + run.recipe.pool_batch * memory.synthesis_image
    assert 0.4 * foretold < tensors.peak < foretold
    limit = round(memory.fixed + max(21 * memory.synthesis_image, 13 * memory.student_image))
    run = start_run(prepare(network, free), free.model_copy(update={"memory_limit": limit}), resolve_device("cpu"))
    assert run.recipe.pool_batch < recipe_for(shape).pool_batch
    assert memory.of(run.recipe) <= limit
    assert all(math.isfinite(value) for value in run.run_step(0).values())


def test_within_a_limit_no_more_scenes_are_made_than_rounding_holds() -> None:
    free = make_options(bits="w8a8", input_shape=(3, 72, 72))
    memory = step_memory(start_run(prepare(trained(Residual()), free), free, resolve_device("cpu")))
    budgets = []
    for images in (40, 4000):
        options = free.model_copy(update={"memory_limit": round(memory.fixed + images * memory.synthesis_image)})
        run = start_run(prepare(trained(Residual()), options), options, resolve_device("cpu"))
        held = most_images(run.views, run.rounding.largest_bytes)
        budgets.append(run.budget.imprint_batches)
        assert budgets[-1] == min(24, max(1, round(held / run.recipe.pool_batch)))
    assert budgets[0] < 24
    assert budgets[1] == 24


@pytest.mark.parametrize("step", ["generator", "student"])
def test_small_batches_foretell_what_the_full_one_holds(step: str) -> None:
    options = make_options(bits="w4a4", input_shape=(3, 32, 32))
    run = start_run(prepare(trained(Residual()), options), options, resolve_device("cpu"))
    memory = step_memory(run)
    with LiveTensors() as tensors:
        loss, _ = (
            run.synthesis.loss(run.recipe, run.random) if step == "generator" else run.student_loss(run.student_batch())
        )
        loss.backward()
        del loss
    images, each = {
        "generator": (run.recipe.generator_images, memory.synthesis_image),
        "student": (run.recipe.student_images, memory.student_image),
    }[step]
    foretold = memory.fixed - FRAMEWORK_BYTES + images * each
    # The estimate allows for a quarter more than tensors.
    assert 0.65 * foretold < tensors.peak < foretold


def test_a_limit_decides_the_batches_of_a_run() -> None:
    free = make_options(bits="w4a4", input_shape=(3, 32, 32))
    memory = step_memory(start_run(prepare(trained(Residual()), free), free, resolve_device("cpu")))
    limit = round(memory.fixed + 41 * memory.synthesis_image)
    options = make_options(bits="w4a4", input_shape=(3, 32, 32), memory_limit=limit)
    run = start_run(prepare(trained(Residual()), options), options, resolve_device("cpu"))
    assert run.recipe.generator_images == 40
    assert memory.of(run.recipe) <= limit
    assert all(math.isfinite(value) for value in run.run_step(0).values())
