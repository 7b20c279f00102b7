"""The picture of synthetic images that a user judges them by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from causal_dfq.causal.graph import Content


@torch.no_grad()
def sample_grid(
    generator: Callable[[Content, Tensor], Tensor], contents: Content, styles: Tensor, batch: int
) -> Tensor:
    """Images (contents, styles, C, H, W): G(C_r, s_c) for every pair, some styles at a time, about `batch` images."""
    rows = len(contents)
    by_style = []
    for some in styles.split(max(1, batch // rows)):
        # Rows of `repeat` are style by style.
        images = generator(contents.repeat(len(some)), some.repeat_interleave(rows, 0))
        by_style.append(images.unflatten(0, (len(some), rows)))
    return torch.cat(by_style).transpose(0, 1)


def draw_grid(
    images: Tensor,
    labels: Tensor | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    path: Path,
) -> None:
    """Writes normalized images (R, S, C, H, W) as a picture: one row a content, one column a style.

    Without labels (R,) the images are in no order. Without a known normalization the values are stretched from
    their 1st to their 99th percentile.
    """
    pixels = images.float().cpu()
    if mean is not None and std is not None:
        pixels = pixels * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        sample = pixels.flatten()[:1_000_000]
        low, high = torch.quantile(sample, 0.01), torch.quantile(sample, 0.99)
        pixels = (pixels - low) / (high - low).clamp_min(1e-6)
    pixels = pixels.clamp(0, 1).permute(0, 1, 3, 4, 2)
    rows, columns = pixels.shape[:2]
    height = 0.75 * rows + 0.7
    figure = Figure(figsize=(0.75 * columns + 0.9, height))
    # Half an inch for the titles, however many rows there are.
    figure.subplots_adjust(top=1 - 0.5 / height)
    axes_grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    # Two channels are no colour: the first is shown.
    is_gray = pixels.shape[-1] < 3
    for row in range(rows):
        for column in range(columns):
            axes = axes_grid[row, column]
            picture = pixels[row, column]
            if is_gray:
                axes.imshow(picture[..., 0].numpy(), cmap="gray", vmin=0, vmax=1)
            else:
                axes.imshow(picture.numpy()[..., :3])
            axes.set_xticks([])
            axes.set_yticks([])
            if labels is not None and column == 0:
                label = f"class {int(labels[row])}"
                axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
            if labels is not None and row == 0:
                axes.set_title(f"$s_{{{column + 1}}}$", fontsize=8)
    order = "" if labels is None else ": one row a content, one column a style"
    figure.suptitle(f"synthetic images{order}", fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight", format="png")
