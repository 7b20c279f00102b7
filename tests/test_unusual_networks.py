"""Signals instead of pictures, and layers whose weights stay in float: quantized, told, exported or refused."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import causal_dfq
from causal_dfq.errors import ExportError
from causal_dfq.summary import summary_table
from causal_dfq.training import budget
from causal_dfq.training.budget import Budget
from tests.networks import trained


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Budget(3, 1, 1, student_steps=1, imprint_batches=1, imprint_iterations=2)
    monkeypatch.setitem(budget.BUDGETS, "fast", small)


class Signals(nn.Module):
    """Two channels of a signal as pictures one pixel high, with padding that torch works out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 8, 5, padding="same"), nn.BatchNorm1d(8)
        self.second, self.fc = nn.Conv1d(8, 8, 4, padding="same", dilation=2), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.first(images.squeeze(2))))
        return self.fc(torch.relu(self.second(features)).mean(2))


class Volumes(nn.Module):
    """A picture as a volume of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fc = nn.Conv3d(1, 4, 3, padding="same"), nn.BatchNorm3d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.first(images.unsqueeze(1)))).mean((2, 3, 4)))


@pytest.mark.parametrize(
    ("network", "shape", "layers"), [(Signals, (2, 1, 32), 3), (Volumes, (3, 8, 8), 2)], ids=["signals", "volumes"]
)
def test_padding_that_torch_works_out_is_a_layer_as_any(
    network: type[nn.Module], shape: tuple[int, int, int], layers: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    quantized = causal_dfq.quantize(trained(network()), "w8a8", shape, effort="fast", device="cpu")
    weights = [tensor for tensor in quantized.quantized_tensors() if tensor.kind == "weight"]
    assert len(weights) == layers
    images = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    exact = quantized.reference(images).detach()
    assert float((quantized(images).detach() - exact).norm() / exact.norm()) < 0.1
    exported = causal_dfq.export_onnx(quantized, tmp_path / "model.onnx")
    assert exported.parity.cosine > 0.99


class Enlarging(nn.Module):
    """A transposed convolution and a product with a matrix of its own between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.larger = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2)
        self.matrix, self.fc = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.larger(torch.relu(self.first(images))).mean((2, 3))
        return self.fc(torch.relu(features @ self.matrix))


def test_weights_that_stay_in_float_are_told_and_not_left_to_a_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = causal_dfq.quantize(Enlarging().eval(), "w8a8", (3, 8, 8), effort="fast", device="cpu")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary_table(quantized, tmp_path))
    assert "2 layers at 8 bits" in capture.get()
    assert "the weights of larger (conv_transpose2d), matmul (matmul)" in capture.get()
    with pytest.raises(ExportError, match="conv_transpose2d at larger has its weights in float"):
        causal_dfq.export_onnx(quantized, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
