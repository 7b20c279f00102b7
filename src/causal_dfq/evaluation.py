"""How a quantized network does beside its float parent on labelled images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from causal_dfq.data.labelled import LabelledImages
from causal_dfq.errors import DataError
from causal_dfq.precision import float32_convolutions

# With more pixels at once a wide first layer takes gigabytes, with fewer images the cores wait.
_MOST_PIXELS, _MOST_IMAGES, _FEWEST_IMAGES = 250 * 64 * 64, 250, 8


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in %, of the quantized and of the float network, on the same images.

    `agreement`: images on which both predict the same class. `drop`: float_top1 - top1, in points;
    `drop_standard_error`: of the mean of the paired differences, in points.
    """

    images: int
    top1: float
    top5: float
    float_top1: float
    float_top5: float
    agreement: float
    drop: float
    drop_standard_error: float
    seconds: float

    def as_dict(self) -> dict[str, float | int]:
        """The figures by name."""
        return asdict(self)


def images_at_once(height: int, width: int) -> int:
    """How many images of this size a batch has where none is asked for."""
    return max(_FEWEST_IMAGES, min(_MOST_IMAGES, _MOST_PIXELS // (height * width)))


@torch.no_grad()
def evaluate_pair(
    quantized: nn.Module,
    reference: nn.Module,
    dataset: LabelledImages,
    device: torch.device,
    batch_size: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Runs both networks, normalized images (N, C, H, W) -> logits (N, K), over all images in float32.

    Args:
        batch_size: None: as many images as their size allows; no figure but the seconds depends on it.

    Raises:
        DataError: a label lies outside of the network's classes, or an image cannot be read.
    """
    started = time.monotonic()
    quantized, reference = quantized.to(device), reference.to(device)
    hits: dict[str, list[Tensor]] = {name: [] for name in ("top1", "top5", "float_top1", "float_top5", "same")}
    done = 0
    if batch_size is None:
        batch_size = images_at_once(*dataset.input_shape[1:])
    for images, labels in DataLoader(dataset, batch_size=batch_size):
        inputs = images.to(device, memory_format=torch.channels_last)
        with float32_convolutions():
            logits, float_logits = quantized(inputs).cpu(), reference(inputs).cpu()
        _check_labels(labels, logits.shape[1], dataset)
        for prefix, output in (("", logits), ("float_", float_logits)):
            ranked = output.topk(min(5, output.shape[1]), 1).indices == labels[:, None]
            hits[f"{prefix}top1"].append(ranked[:, 0])
            hits[f"{prefix}top5"].append(ranked.any(1))
        hits["same"].append(logits.argmax(1) == float_logits.argmax(1))
        done += len(labels)
        if on_batch is not None:
            on_batch(done, len(dataset))
    joined = {name: torch.cat(parts).double() for name, parts in hits.items()}
    percent = {name: 100 * float(values.mean()) for name, values in joined.items()}
    difference = joined["float_top1"] - joined["top1"]
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return Evaluation(
        images=len(difference),
        top1=percent["top1"],
        top5=percent["top5"],
        float_top1=percent["float_top1"],
        float_top5=percent["float_top5"],
        agreement=percent["same"],
        drop=percent["float_top1"] - percent["top1"],
        drop_standard_error=100 * error,
        seconds=time.monotonic() - started,
    )


def _check_labels(labels: Tensor, classes: int, dataset: LabelledImages) -> None:
    source, folders = dataset.source, dataset.class_folders
    if folders is not None and folders != classes:
        raise DataError(
            f"{source} has {folders} class folders, but the network has {classes} classes: labels are counted from the "
            "sorted folders, so each class needs one; or give images/ and labels.csv"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise DataError(f"{source} has the label {int(outside[0])}, but the network has {classes} classes, from 0")


def render_table(evaluation: Evaluation, title: str) -> Table:
    """The figures as a person reads them."""
    table = Table(title=escape(title))
    for column in ("", "FP32", "quantized", "drop"):
        table.add_column(column, justify="right" if column else "left")
    drop = f"{evaluation.drop:.2f} ± {evaluation.drop_standard_error:.2f}"
    top5_drop = f"{evaluation.float_top5 - evaluation.top5:.2f}"
    table.add_row("top-1 %", f"{evaluation.float_top1:.2f}", f"{evaluation.top1:.2f}", drop)
    table.add_row("top-5 %", f"{evaluation.float_top5:.2f}", f"{evaluation.top5:.2f}", top5_drop)
    table.add_row("agreement %", "", f"{evaluation.agreement:.2f}", "")
    table.add_row("images", "", f"{evaluation.images:,}", "")
    return table
