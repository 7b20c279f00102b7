"""The upper reference trains on the images of its folder, mirrored and shifted, in the place of synthesis."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.networks import Subject
from bench.real import RealImages, train_on_real_images
from causal_dfq.pipeline import train
from causal_dfq.training import budget
from causal_dfq.training.budget import CAUSAL_RECIPE, Budget
from tests.bench.test_shared_synthesis import started
from tests.networks import Residual, trained

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CLASSES = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The package's layout: four images in each of five files, of one colour each; labels in turn."""
    for batch in range(5):
        rows = [numpy.full((1024, 3), 4 * batch + number, dtype=numpy.uint8) for number in range(4)]
        Image.fromarray(numpy.stack(rows)).save(tmp_path / f"data_batch_{batch + 1}.png")
    (tmp_path / "train_lables.json").write_text(json.dumps([number % CLASSES for number in range(20)]))
    return tmp_path


def subject() -> Subject:
    return Subject(trained(Residual()), (3, 32, 32), MEAN, STD, ())


def pixels(images: Tensor) -> Tensor:
    """Of normalized images, from 0 to 255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return 255 * (images * std + mean)


def test_a_batch_holds_normalized_images_with_their_labels(folder: Path) -> None:
    real = RealImages(folder, subject(), torch.device("cpu"))
    drawn = real.student_images(CAUSAL_RECIPE, torch.Generator().manual_seed(0))
    assert drawn.images.shape == (CAUSAL_RECIPE.student_images, 3, 32, 32)
    colours = pixels(drawn.images)
    # One colour is mirrored and shifted to itself, in all channels.
    assert torch.allclose(colours, colours[:, :1, :1, :1].expand_as(colours), atol=1e-3)
    assert torch.equal(colours[:, 0, 0, 0].round().long() % CLASSES, drawn.labels)
    assert drawn.intervened == 0
    again = real.student_images(CAUSAL_RECIPE, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.images, again.images)


def test_images_are_shifted_by_a_few_pixels_and_some_are_mirrored(folder: Path) -> None:
    ramp = numpy.tile(numpy.arange(32, dtype=numpy.uint8)[:, None], (32, 3)).reshape(1, 1024, 3)
    for batch in range(1, 6):
        Image.fromarray(numpy.repeat(ramp, 4, 0)).save(folder / f"data_batch_{batch}.png")
    drawn = RealImages(folder, subject(), torch.device("cpu")).student_images(
        CAUSAL_RECIPE, torch.Generator().manual_seed(0)
    )
    middle = pixels(drawn.images)[:, 0, 16, 15:17].round()
    assert set((middle[:, 1] - middle[:, 0]).tolist()) == {-1.0, 1.0}
    assert (middle.mean(1) - 15.5).abs().max() <= 4


def test_a_run_learns_on_them_without_synthesis(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        budget.BUDGETS, "fast", Budget(1, 1, 1, student_steps=1, imprint_batches=2, imprint_iterations=3)
    )
    network = trained(Residual())
    run = started(network, "w4a4", "causal")
    untrained = {name: value.clone() for name, value in run.quantized.named_parameters()}
    train_on_real_images(run, subject(), folder)
    assert run.budget.imprint_steps == 0
    metrics = [report.metrics for report in train(run)]
    assert all(torch.tensor(list(found.values())).isfinite().all() for found in metrics)
    # Without interventions there is no causal loss.
    assert not any("discrepancy" in found for found in metrics)
    assert any(not torch.equal(value, untrained[name]) for name, value in run.quantized.named_parameters())
