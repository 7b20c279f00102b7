"""Speed: each step, the quantized training step against the bare one, and our synthesis against the peer's.

    python -m bench.speed [--only resnet20] [--out FILE]

Everything that is compared is interleaved in one process. Writes bench/results/speed.json after every
measurement, and prints the table. A stopped bench goes on from there: what the file holds of the same package,
versions and machine is kept. The peer needs the extra `bench`; without it its ratios are left out.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import peer
from bench.environment import ROOT, describe, is_same_package, peak_memory_gb
from bench.timing import Timing, interleave, paired_ratio
from causal_dfq.allocator import keep_freed_memory
from causal_dfq.causal.graph import CONTENT, STYLE
from causal_dfq.config import make_options
from causal_dfq.files import write_text
from causal_dfq.fusion import fusion
from causal_dfq.network.load import load_network
from causal_dfq.pipeline import PreparedNetwork, prepare, resolve_device, start_run
from causal_dfq.training.budget import Recipe
from causal_dfq.training.equilibrium import Equilibrium
from causal_dfq.training.memory import LiveTensors
from causal_dfq.training.views import NetworkViews, has_bfloat16_arithmetic

RESULTS = ROOT / "bench" / "results" / "speed.json"
FLOOR_BATCH = 128
# Our synthesis is looked at this often, its loss is measured on as many images as the peer's.
_STEPS_BETWEEN_LOOKS = 5
_MOST_LOOKS = 200


@dataclass(frozen=True)
class Subject:
    """A network to measure on, its input, the turns of interleaved comparisons, and how long each side synthesizes."""

    name: str
    load: Callable[[], tuple[nn.Module, tuple[float, ...] | None, tuple[float, ...] | None]]
    side: int
    repeats: int
    peers_iterations: int
    our_steps: int
    turns: int


def _resnet20() -> tuple[nn.Module, tuple[float, ...] | None, tuple[float, ...] | None]:
    loaded = load_network("resnet20-cifar10")
    return loaded.network, loaded.mean, loaded.std


def _resnet18() -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    # Weights that were never trained cost the same operations.
    return resnet18(weights=None).eval(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


SUBJECTS = (
    Subject("resnet20-cifar10", _resnet20, 32, 15, 200, 60, 4),
    Subject("torchvision:resnet18", _resnet18, 224, 5, 10, 10, 2),
)


class Floor:
    """The same training step of the bare float network: same images, targets, losses, layout and precision."""

    def __init__(self, prepared: PreparedNetwork, run: Equilibrium, recipe: Recipe) -> None:
        options = make_options(bits="w4a4", input_shape=run.image_shape)
        bare = replace(prepared, quantized=copy.deepcopy(prepared.folded))
        self.run = start_run(bare, options, run.device)
        self.run.recipe = recipe
        parameters = [parameter.requires_grad_() for parameter in bare.quantized.parameters()]
        self.run.student_optimizer = torch.optim.Adam(parameters, lr=1e-6, fused=True)


def measure_steps(subject: Subject, repeats: int) -> dict[str, Any]:
    """Seconds of each step as a run makes it, beside the floor at batch 128 and beside other ways to compute it."""
    keep_freed_memory()
    network, mean, std = subject.load()
    options = make_options(bits="w4a4", input_shape=(3, subject.side, subject.side), mean=mean, std=std)
    prepared = prepare(network, options)
    run = start_run(prepared, options, resolve_device("cpu"))
    recipe = run.recipe
    run.calibrate()
    at_floor = _recipe_of_batch(recipe, FLOOR_BATCH)
    floor = Floor(prepared, run, at_floor).run
    batch = run.student_batch()
    run.recipe = at_floor
    floor_batch = run.student_batch()
    run.recipe = recipe

    def quantized_training_step() -> None:
        run.recipe = at_floor
        run.update_student(floor_batch)
        run.recipe = recipe

    def generator_step() -> None:
        run.keep_up()

    def alone(one: Equilibrium) -> None:
        logits = one.views.quantized_logits(floor_batch.images)
        one.student_optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits, floor_batch.pretrained.logits.argmax(1)).backward()
        one.student_optimizer.step()

    def in_float32(step: Callable[[], object]) -> None:
        run.views._uses_bfloat16 = False
        step()
        run.views._uses_bfloat16 = has_bfloat16_arithmetic(torch.device("cpu"))

    generator, student, update = "generator step", "student step", "student update"
    quantized_alone, bare_alone = (
        f"{kind} network, cross-entropy alone, batch {FLOOR_BATCH}" for kind in ("quantized", "float")
    )
    quantized, bare = f"quantized training step, batch {FLOOR_BATCH}", f"float training step, batch {FLOOR_BATCH}"
    work: dict[str, Callable[[], object]] = {
        generator: compiled(run, generator_step),
        student: compiled(run, lambda: run._train_student(1.0)),
        update: compiled(run, lambda: run.update_student(batch)),
        quantized: compiled(run, quantized_training_step),
        bare: compiled(run, lambda: floor.update_student(floor_batch)),
        f"{generator}, not compiled": generator_step,
        f"{update}, not compiled": lambda: run.update_student(batch),
        f"{generator}, in float32": compiled(run, lambda: in_float32(generator_step)),
        f"{update}, in float32": compiled(run, lambda: in_float32(lambda: run.update_student(batch))),
        quantized_alone: compiled(run, lambda: alone(run)),
        bare_alone: lambda: alone(floor),
    }
    seconds = interleave(work, repeats)
    images = {generator: recipe.generator_images, student: len(batch.images), update: len(batch.images)}
    counts = {name: images.get(name.split(",")[0], FLOOR_BATCH) for name in work}
    steps = {
        name: asdict(Timing.of(found)) | {"images_per_second": counts[name] / statistics.median(found)}
        for name, found in seconds.items()
    }
    operations = count_operations(run, prepared)
    tensors = {generator: peak_tensors(generator_step), student: peak_tensors(lambda: run._train_student(1.0))}
    return {
        "steps": steps,
        "peak_tensors_gb": tensors,
        "training_step_over_floor": asdict(paired_ratio(seconds[quantized], seconds[bare])),
        "network_alone_over_floor": asdict(paired_ratio(seconds[quantized_alone], seconds[bare_alone])),
        "operations": operations,
        "batches": {"generator": recipe.generator_images, "student": len(batch.images)},
        # What the bare network's training reaches: three times its operations in the seconds of a step.
        "operations_per_second": 3 * FLOOR_BATCH * operations["network"] / statistics.median(seconds[bare_alone]),
    }


def peak_tensors(step: Callable[[], object]) -> float:
    """Gigabytes of the tensors that a step makes, at the moment when they are most; weights come on top."""
    with LiveTensors() as tensors:
        step()
    return tensors.peak / 2**30


def compiled(run: Equilibrium, step: Callable[[], object]) -> Callable[[], object]:
    """The step as a run makes it that is long enough to compile for."""

    def in_fusion() -> None:
        with fusion(run.device):
            step()

    return in_fusion


def count_operations(run: Equilibrium, prepared: PreparedNetwork) -> dict[str, float]:
    """Multiplications with addition of one image's forward pass: of the network, and of the generator."""
    random = torch.Generator().manual_seed(0)
    content, style = run.synthesis.model.sample(CONTENT, 2, random), run.synthesis.model.sample(STYLE, 2, random)
    counts = {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        images = run.synthesis.generator(content, style)
        counts["generator"] = counter.get_total_flops() / 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        prepared.folded(images)
        counts["network"] = counter.get_total_flops() / 4
    return counts


def _recipe_of_batch(recipe: Recipe, images: int) -> Recipe:
    """The same losses on so many fully shown images."""
    return replace(recipe, student_contents=images // recipe.styles - 2, hidden_contents=1, scenes=2)


def batch_norm_loss(views: NetworkViews, statistics_: list[tuple[Tensor, Tensor]], images: Tensor) -> float:
    """The peer's alignment loss, for both sides alike: mean over layers of |d mean|^2 / C + |d std|^2 / C."""
    with torch.no_grad():
        _, found, _ = views.statistics_view(images)
    losses = [
        (mean - running_mean).square().mean() + (variance.sqrt() - running_variance.sqrt()).square().mean()
        for (mean, variance), (running_mean, running_variance) in zip(found, statistics_, strict=True)
    ]
    return float(torch.stack(losses).mean())


def measure_synthesis(subject: Subject, turns: int) -> dict[str, Any]:
    """Our generator and the peer's optimization in turn: rates, and the time to the loss that the peer ends at.

    That time counts everything from the first step on, the compilation too; the rate is taken after it.
    """
    network, mean, std = subject.load()
    options = make_options(bits="w4a4", input_shape=(3, subject.side, subject.side), mean=mean, std=std)
    prepared = prepare(network, options)
    measured: list[dict[str, float]] = []
    for turn in range(turns):
        run = start_run(prepared, options.model_copy(update={"seed": turn}), resolve_device("cpu"))
        peers = peer.synthesize(network, subject.side, subject.peers_iterations)
        loss = batch_norm_loss(run.views, run.synthesis.statistics, peers.images)
        with fusion(run.device):
            seconds, steps = _time_to_loss(run, loss)
            started = time.perf_counter()
            for _ in range(subject.our_steps):
                run.warm_up(0.0)
            rate = run.recipe.generator_images * subject.our_steps / (time.perf_counter() - started)
        measured.append(
            {
                "our_rate": rate,
                "peers_rate": peers.image_iterations_per_second,
                "peers_last_loss": loss,
                "peers_seconds": peers.seconds,
                "our_seconds_to_that_loss": seconds,
                "our_steps_to_that_loss": steps,
            }
        )
    by_name = {name: [found[name] for found in measured] for name in measured[0]}
    return {
        **{name: asdict(Timing.of(values)) for name, values in by_name.items()},
        "rate_over_peers": asdict(paired_ratio(by_name["our_rate"], by_name["peers_rate"])),
        "share_of_the_peers_time": asdict(paired_ratio(by_name["our_seconds_to_that_loss"], by_name["peers_seconds"])),
        "peers_iterations": subject.peers_iterations,
    }


def _time_to_loss(run: Equilibrium, loss: float) -> tuple[float, int]:
    """Seconds and number of generator steps until fresh images have this loss; looking is not counted.

    Raises:
        RuntimeError: it is never reached.
    """
    seconds, steps = 0.0, 0
    for _ in range(_MOST_LOOKS):
        started = time.perf_counter()
        for _ in range(_STEPS_BETWEEN_LOOKS):
            run.warm_up(0.0)
        seconds += time.perf_counter() - started
        steps += _STEPS_BETWEEN_LOOKS
        with torch.no_grad():
            _, images = run.synthesis.interventions(peer.BATCH // run.recipe.styles, run.recipe, run.random)
        if batch_norm_loss(run.views, run.synthesis.statistics, images) <= loss:
            return seconds, steps
    raise RuntimeError(f"after {steps} steps the generator's BatchNorm loss is still above the peer's {loss:.4f}")


def measure_run(subject: Subject, bits: str, effort: str) -> dict[str, Any]:
    """A whole run in this process: seconds and peak memory."""
    import causal_dfq

    network, mean, std = subject.load()
    shape = (3, subject.side, subject.side)
    started = time.perf_counter()
    causal_dfq.quantize(network, bits, shape, effort=effort, mean=mean, std=std, device="cpu")  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    # Linux counts kilobytes.
    return {"seconds": seconds, "peak_memory_gb": peak_memory_gb()}


RUNS = (
    ("resnet20-cifar10", "w8a8", "fast"),
    ("resnet20-cifar10", "w4a4", "balanced"),
    ("torchvision:resnet18", "w8a8", "fast"),
)
_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "steps": measure_steps,
    "synthesis": measure_synthesis,
    "run": measure_run,
}


def render(results: dict[str, Any]) -> Table:
    """What a person reads."""
    table = Table(title="speed")
    for column in ("network", "what", "seconds", "images/s", "ratio"):
        table.add_column(column, justify="left" if column in ("network", "what") else "right")
    for name, found in results["steps"].items():
        for step, timing in found["steps"].items():
            table.add_row(name, step, f"{timing['median']:.3f}", f"{timing['images_per_second']:.0f}", "")
        ratio = found["training_step_over_floor"]
        table.add_row(name, "quantized over float training step", "", "", f"{ratio['median']:.2f}")
    for name, found in results["synthesis"].items():
        rate, share, ours = found["rate_over_peers"], found["share_of_the_peers_time"], found["our_rate"]
        table.add_row(
            name, "synthesis, ours over the peer's rate", "", f"{ours['median']:.0f}", f"{rate['median']:.2f}"
        )
        table.add_row(name, "time to the peer's last loss, share of the peer's", "", "", f"{share['median']:.2f}")
    for name, found in results["runs"].items():
        table.add_row(name, f"peak {found['peak_memory_gb']:.1f} GB", f"{found['seconds']:.1f}", "", "")
    return table


def main(
    only: Annotated[str, typer.Option(help="Only networks whose name contains this.")] = "",
    out: Annotated[Path, typer.Option(help="The results file.")] = RESULTS,
    one: Annotated[str, typer.Option(hidden=True, help="One measurement as JSON: its arguments.")] = "",
) -> None:
    """Every measurement is a process of its own, so that its peak memory is its own."""
    if one:
        what, index, *arguments = json.loads(one)
        print(json.dumps(_MEASURES[what](SUBJECTS[index], *arguments)))
        return
    results = kept_results(out)
    if not peer.is_installed():
        print("the peer is not installed (pip install 'causal-dfq[bench]'): its ratios are left out", flush=True)
    for index, subject in enumerate(SUBJECTS):
        if only not in subject.name:
            continue
        requests = [("steps", subject.name, ["steps", index, subject.repeats])]
        if peer.is_installed():
            requests.append(("synthesis", subject.name, ["synthesis", index, subject.turns]))
        for name, bits, effort in RUNS:
            if name == subject.name:
                requests.append(("runs", f"{name} {bits} {effort}", ["run", index, bits, effort]))
        for kind, name, request in requests:
            if name in results[kind]:
                continue
            results[kind][name] = _measured(request)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(results, indent=1) + "\n")
    Console(width=max(Console().width, 120)).print(render(results))


def kept_results(path: Path) -> dict[str, Any]:
    """What an earlier results file holds of the package as it is, under the origin of today."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    kept = earlier if earlier and is_same_package(earlier) else {}
    return {**describe(), **{kind: kept.get(kind, {}) for kind in ("steps", "synthesis", "runs")}}


def _measured(request: list[Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.speed", "--one", json.dumps(request)]
    with tempfile.TemporaryFile("w+") as output:
        subprocess.run(command, cwd=ROOT, stdout=output, check=True)
        output.seek(0)
        measured: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    print(" ".join(map(str, request)), "measured", flush=True)
    return measured


if __name__ == "__main__":
    typer.run(main)
