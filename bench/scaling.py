"""Cost against steps, images and the network's operations: it should be a line.

    python -m bench.scaling [--out FILE] [--picture FILE]

Four sizes each, interleaved. Writes bench/results/scaling.json and docs/scaling.png.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench.environment import ROOT, describe
from bench.timing import interleave
from causal_dfq.config import make_options
from causal_dfq.files import write_atomically, write_text
from causal_dfq.fusion import fusion
from causal_dfq.pipeline import prepare, resolve_device, start_run
from causal_dfq.training.budget import Budget, Recipe
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.zoo.architectures import BasicBlock

RESULTS = ROOT / "bench" / "results" / "scaling.json"
PICTURE = ROOT / "docs" / "scaling.png"
ROUNDS = (1, 2, 3, 4)
CONTENTS = (32, 64, 96, 128)
BLOCKS = (1, 2, 3, 4)
REPEATS = 7


class CifarResNet(nn.Module):
    """ResNet of 6 n + 2 layers for 32x32 images (He et al., CVPR 2016, section 4.2)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        layers = [
            BasicBlock(wide if index else narrow, wide, 1 if index else stride)
            for narrow, wide, stride in stages
            for index in range(blocks)
        ]
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, 10)."""
        features = self.layers(functional.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def started(blocks: int) -> Equilibrium:
    """A run of the residual network, calibrated."""
    torch.manual_seed(0)
    options = make_options(bits="w4a4", input_shape=(3, 32, 32))
    run = start_run(prepare(CifarResNet(blocks).eval(), options), options, resolve_device("cpu"))
    run.calibrate()
    return run


def operations(blocks: int) -> int:
    """Multiplications and additions of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        CifarResNet(blocks).eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def one_round(run: Equilibrium, rounds: int = 1) -> None:
    """Rounds of the equilibrium: the generator once, the quantized network as often as `balanced` does."""
    for _ in range(rounds):
        run.keep_up()
        for _ in range(Budget(0, 0, 0).student_steps):
            run._train_student(1.0)


def with_contents(run: Equilibrium, contents: int) -> None:
    """Sets both batches to a share contents / 64 of the usual ones, and trains a round."""
    usual = Recipe()
    share = contents / usual.generator_contents
    run.recipe = replace(
        usual,
        generator_contents=contents,
        student_contents=round(share * usual.student_contents),
        hidden_contents=round(share * usual.hidden_contents),
        scenes=round(share * usual.scenes),
    )
    one_round(run)


def measure() -> dict[str, dict[str, list[float]]]:
    """For each kind of size: the sizes, and the median seconds of a round of training (or of more)."""
    three_blocks = started(3)
    networks = {blocks: started(blocks) for blocks in BLOCKS}
    kinds: dict[str, dict[float, Callable[[], object]]] = {
        "rounds of training": {float(n): lambda n=n: one_round(three_blocks, n) for n in ROUNDS},
        "images a generator batch": {2.0 * n: lambda n=n: with_contents(three_blocks, n) for n in CONTENTS},
        "operations of the network, millions": {
            operations(n) / 1e6: lambda n=n: one_round(networks[n]) for n in BLOCKS
        },
    }
    measured = {}
    for kind, work in kinds.items():
        three_blocks.recipe = Recipe()
        with fusion(three_blocks.device):
            seconds = interleave({str(size): call for size, call in work.items()}, REPEATS, warm_up=1)
        measured[kind] = {"size": list(work), "seconds": [statistics.median(found) for found in seconds.values()]}
    return measured


def straightness(sizes: list[float], seconds: list[float]) -> dict[str, float]:
    """The least-squares line, and how far it misses a measurement at most, as a share of it."""
    slope, offset = numpy.polyfit(sizes, seconds, 1)
    misses = [abs(slope * size + offset - found) / found for size, found in zip(sizes, seconds, strict=True)]
    return {"slope": float(slope), "offset": float(offset), "largest_miss": float(max(misses))}


def draw(measured: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel a kind of size: measurements and the line."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (kind, found) in zip(figure.subplots(1, len(measured)), measured.items(), strict=True):
        line = found["line"]
        ends = numpy.array([0.0, max(found["size"])])
        axes.plot(ends, line["slope"] * ends + line["offset"], color="0.6", linewidth=1)
        axes.plot(found["size"], found["seconds"], "o", color="C0")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(kind)
        axes.set_ylabel("seconds")
        axes.set_title(f"off the line by at most {100 * line['largest_miss']:.0f} %", fontsize=9)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))


def main(
    out: Annotated[Path, typer.Option(help="The results file.")] = RESULTS,
    picture: Annotated[Path, typer.Option(help="The plot.")] = PICTURE,
) -> None:
    """Measures, writes the results and the plot."""
    measured: dict[str, dict[str, Any]] = dict(measure())
    for kind, found in measured.items():
        found["line"] = straightness(found["size"], found["seconds"])
        print(f"{kind}: off the line by at most {100 * found['line']['largest_miss']:.0f} %", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({**describe(), "scaling": measured}, indent=1) + "\n")
    draw(measured, picture)


if __name__ == "__main__":
    typer.run(main)
