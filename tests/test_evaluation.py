"""The figures of an evaluation, counted by hand."""

from pathlib import Path

import numpy
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from causal_dfq.data.labelled import LabelledImages, Preprocessing, open_labelled
from causal_dfq.errors import DataError
from causal_dfq.evaluation import evaluate_pair, images_at_once, render_table


class Ranking(nn.Module):
    """Ranks the classes by a table, one row an image; the image's value is its row."""

    def __init__(self, rankings: list[list[int]]) -> None:
        super().__init__()
        self.rankings = rankings

    def forward(self, images: Tensor) -> Tensor:
        rows = (images[:, 0, 0, 0] * 255).round().long().tolist()
        logits = torch.zeros(len(rows), 7)
        for index, row in enumerate(rows):
            for place, label in enumerate(self.rankings[row]):
                logits[index, label] = 10 - place
        return logits


def dataset(folder: Path, labels: list[int]) -> LabelledImages:
    images = numpy.arange(len(labels), dtype=numpy.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    numpy.savez(folder / "d.npz", images=images, labels=numpy.array(labels))
    return open_labelled(folder / "d.npz", Preprocessing((1, 2, 2), (0.0,), (1.0,)))


def test_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    quantized = Ranking([[0], [1, 2], [6, 5, 4, 3, 2], [3]])
    reference = Ranking([[0], [2], [2], [6, 5, 4, 1, 0, 3]])
    found = evaluate_pair(quantized, reference, dataset(tmp_path, [0, 2, 2, 3]), torch.device("cpu"), batch_size=3)
    assert (found.images, found.top1, found.top5) == (4, 50, 100)
    assert (found.float_top1, found.float_top5) == (75, 75)
    assert found.agreement == 25
    assert found.drop == 25
    # Paired differences 0, 1, 1, -1.
    differences = numpy.array([0, 1, 1, -1])
    assert found.drop_standard_error == pytest.approx(100 * differences.std(ddof=1) / 2)


def test_batches_are_reported(tmp_path: Path) -> None:
    network, heard = Ranking([[0]] * 5), []
    images = dataset(tmp_path, [0] * 5)
    evaluate_pair(network, network, images, torch.device("cpu"), 2, lambda done, total: heard.append((done, total)))
    assert heard == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(("side", "count"), [(28, 250), (64, 250), (224, 20), (1024, 8)])
def test_batches_of_larger_images_have_fewer_of_them(side: int, count: int) -> None:
    assert images_at_once(side, side) == count


def test_batches_follow_the_size_of_the_images_and_the_figures_do_not(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "d.npz", images=numpy.arange(10, dtype=numpy.uint8)[:, None, None], labels=[0, 1] * 5)
    images = open_labelled(tmp_path / "d.npz", Preprocessing((1, 400, 400), (0.0,), (1.0,)))
    quantized, reference, heard = Ranking([[0], [1], [2, 1], [0], [1]] * 2), Ranking([[0], [1]] * 5), []
    found = evaluate_pair(
        quantized, reference, images, torch.device("cpu"), on_batch=lambda done, total: heard.append((done, total))
    )
    assert heard == [(8, 10), (10, 10)]
    at_once = evaluate_pair(quantized, reference, images, torch.device("cpu"), batch_size=10)
    assert {**found.as_dict(), "seconds": 0} == {**at_once.as_dict(), "seconds": 0}


def test_label_outside_of_the_classes_is_told(tmp_path: Path) -> None:
    network = Ranking([[0]] * 2)
    with pytest.raises(DataError, match="label 7, but the network has 7 classes"):
        evaluate_pair(network, network, dataset(tmp_path, [0, 7]), torch.device("cpu"))


def test_class_folders_of_another_number_than_the_classes_are_told(tmp_path: Path) -> None:
    images = dataset(tmp_path, [0, 1])
    images.class_folders = 2
    network = Ranking([[0]] * 2)
    with pytest.raises(DataError, match="2 class folders, but the network has 7 classes"):
        evaluate_pair(network, network, images, torch.device("cpu"))


def test_table_shows_both_networks_and_the_error(tmp_path: Path) -> None:
    network = Ranking([[0]] * 4)
    found = evaluate_pair(network, network, dataset(tmp_path, [0, 0, 0, 1]), torch.device("cpu"))
    console = Console(width=100, record=True)
    console.print(render_table(found, "title"))
    text = console.export_text()
    assert "75.00" in text
    assert "0.00 ± 0.00" in text
    assert "100.00" in text
