"""The bundled networks: built, loaded, and described by the cards that their training wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file
from torch import nn

from causal_dfq.zoo.architectures import MobileNetV2Small, ResNet20

WEIGHTS = Path(__file__).parent / "weights"
BUNDLED = ("resnet20-fashion", "resnet20-cifar10", "mobilenetv2-cifar10")


class Card(BaseModel):
    """What a bundled network is, how it was trained, and its accuracy in % by data set."""

    model_config = ConfigDict(frozen=True)

    name: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    top1: dict[str, float]
    recipe: dict[str, float]
    seed: int
    command: str
    versions: dict[str, str]


def read_card(name: str) -> Card:
    """The card of a bundled network."""
    return Card.model_validate_json((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))


def build(name: str) -> nn.Module:
    """The untrained network of a bundled name.

    Raises:
        KeyError: no such name.
    """
    builders: dict[str, Callable[[], nn.Module]] = {
        "resnet20-fashion": lambda: ResNet20(in_channels=1),
        "resnet20-cifar10": ResNet20,
        "mobilenetv2-cifar10": MobileNetV2Small,
    }
    return builders[name]()


def load_bundled(name: str) -> nn.Module:
    """The trained network of a bundled name, in evaluation mode."""
    network = build(name)
    network.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return network.eval()
