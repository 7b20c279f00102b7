"""The peer of the synthesis bench: data generation of Sony's model-compression-toolkit (extra `bench`)."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 64


@dataclass(frozen=True)
class PeerRun:
    """Images (N, C, H, W) as the network takes them, their iterations, and the seconds that their making took."""

    images: Tensor
    iterations: int
    seconds: float

    @property
    def image_iterations_per_second(self) -> float:
        """Images times iterations, by the second."""
        return len(self.images) * self.iterations / self.seconds


def is_installed() -> bool:
    """Whether the peer can be measured here."""
    return importlib.util.find_spec("model_compression_toolkit") is not None


def synthesize(network: nn.Module, side: int, iterations: int) -> PeerRun:
    """One batch of 64 images, side x side, by the peer's defaults."""
    import model_compression_toolkit as mct  # type: ignore[import-not-found]

    generation = mct.data_generation
    config = generation.get_pytorch_data_generation_config(n_iter=iterations, data_gen_batch_size=BATCH)
    started = time.perf_counter()
    images = generation.pytorch_data_generation_experimental(
        model=network, n_images=BATCH, output_image_size=side, data_generation_config=config
    )
    seconds = time.perf_counter() - started
    return PeerRun(torch.cat(images), iterations, seconds)
