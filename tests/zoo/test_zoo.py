"""The bundled networks and the tools that trained them."""

import gzip
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from causal_dfq.zoo.bundled import BUNDLED, WEIGHTS, load_bundled, read_card
from causal_dfq.zoo.muon import Muon, orthogonalize
from causal_dfq.zoo.train import augment
from causal_dfq.zoo.training_data import read_cifar10_sprites, read_idx

LEAST = {"resnet20-fashion": 93.0, "resnet20-cifar10": 91.5, "mobilenetv2-cifar10": 90.0}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_network_fits_its_card(name: str) -> None:
    card = read_card(name)
    assert load_bundled(name)(torch.zeros(2, *card.input_shape)).shape == (2, card.classes)
    assert min(card.top1.values()) >= LEAST[name]
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 3_000_000


def test_demo_images_are_classified() -> None:
    archive = numpy.load(Path(__file__).parents[2] / "demo" / "fashion_mnist_2000.npz")
    card = read_card("resnet20-fashion")
    images = torch.from_numpy(archive["images"][:500]).permute(0, 3, 1, 2) / 255
    logits = load_bundled("resnet20-fashion")((images - card.mean[0]) / card.std[0])
    assert (logits.argmax(1) == torch.from_numpy(archive["labels"][:500])).float().mean() > 0.9


def test_orthogonalize_brings_singular_values_near_one() -> None:
    for shape in ((8, 30), (30, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalize(matrix))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_moves_against_the_gradient_and_keeps_the_norm() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    target = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(20):
        loss = -torch.cosine_similarity(weight.flatten(), target.flatten(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.3
    assert float(weight.norm()) == pytest.approx(2, abs=0.2)


def test_augment_cuts_windows_and_mirrors_half() -> None:
    images = torch.arange(36.0).view(1, 1, 6, 6).repeat(200, 1, 1, 1) + 1
    crops = augment(images, 4, 1, torch.Generator().manual_seed(0))
    assert crops.shape == (200, 1, 4, 4)
    inside = crops[(crops > 0).all((1, 2, 3))]
    steps = (inside[:, 0, 0, 1] - inside[:, 0, 0, 0]).tolist()
    assert set(steps) == {1.0, -1.0}
    assert ((inside[:, 0, 1] - inside[:, 0, 0]) == 6).all()


def test_idx_file_is_read(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 1, 3)) + bytes(range(6))
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    assert read_idx(tmp_path / "x.gz").tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


def test_sprites_hold_one_image_a_row(tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (2, 1024, 3), numpy.uint8)
    for batch in range(1, 6):
        Image.fromarray(pixels).save(tmp_path / f"data_batch_{batch}.png")
    (tmp_path / "train_lables.json").write_text("[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")
    data = read_cifar10_sprites(tmp_path)
    assert data.images.shape == (10, 3, 32, 32)
    assert data.images[1, :, 3, 5].tolist() == pixels[1, 3 * 32 + 5].tolist()
    assert data.labels.tolist() == list(range(10))
