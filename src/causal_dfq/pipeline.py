"""quantize(): capture, equalization, placement, generator warm-up, equilibrium, finish, finished network."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy
import torch
from torch import Tensor, fx, nn

from causal_dfq.allocator import keep_freed_memory
from causal_dfq.causal.graph import CONTENT, STYLE, Content
from causal_dfq.config import (
    AUTO_BITS,
    FLOAT_BITS,
    Effort,
    Method,
    Options,
    Protocol,
    SizeBudget,
    make_options,
    parse_bytes,
)
from causal_dfq.errors import ConfigError, NetworkError
from causal_dfq.fusion import fusion
from causal_dfq.network.capture import capture
from causal_dfq.network.equalize import equalize
from causal_dfq.network.fold import LAYERS, fold_batch_norm
from causal_dfq.network.operations import (
    DECOMPOSED_LAYERS,
    attribute,
    batch_norm_nodes,
    class_count,
    weight_layer_nodes,
)
from causal_dfq.precision import float32_convolutions
from causal_dfq.quantized import QuantizedNetwork, RunRecord, freeze
from causal_dfq.quantizer.accumulator import simulate_integers
from causal_dfq.quantizer.bit_allocation import check_budget
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, place_quantizers
from causal_dfq.quantizer.ties import avoid_ties
from causal_dfq.synthesis.gallery import sample_grid
from causal_dfq.training.analysis import analyse
from causal_dfq.training.budget import Budget, Recipe, pays_for_compilation, recipe_for
from causal_dfq.training.equilibrium import Equilibrium, Metrics, Phase
from causal_dfq.training.generator_training import GeneratorTraining
from causal_dfq.training.layer_rounding import RoundingSettings
from causal_dfq.training.memory import fit_recipe, step_memory
from causal_dfq.training.methods import METHODS
from causal_dfq.training.pool_training import PoolTraining, Synthesis
from causal_dfq.training.sensitivity import layer_sensitivities
from causal_dfq.training.views import NetworkViews
from causal_dfq.version import __version__

GALLERY_CONTENTS, GALLERY_STYLES = 10, 8


@dataclass(frozen=True)
class PreparedNetwork:
    """The user's network as graphs: as captured, with BatchNorm folded, equalized, and with quantizers placed.

    Q is made from the equalized graph and learns beside it; it is the folded one where nothing is equalized.
    """

    captured: fx.GraphModule
    folded: fx.GraphModule
    equalized: fx.GraphModule
    quantized: fx.GraphModule

    @property
    def has_statistics(self) -> bool:
        """Whether P keeps statistics of its training images; without BatchNorm its logits alone guide synthesis."""
        return bool(batch_norm_nodes(self.captured.graph))

    @property
    def classes(self) -> int:
        """K, the number of logits."""
        return class_count(self.captured)

    @property
    def digest(self) -> str:
        """SHA-256 of the captured weights, by name: what a run is a run of."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.captured.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class StepReport:
    """What one step did: its number from 1, of how many, its phase and its metrics."""

    step: int
    total: int
    phase: Phase
    metrics: Metrics


def quantize(
    network: nn.Module,
    bits: str = "w4a4",
    input_shape: tuple[int, int, int] = (3, 224, 224),
    *,
    protocol: Protocol = "deploy",
    effort: Effort = "balanced",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    method: Method = "causal",
    device: str = "auto",
    seed: int = 0,
    memory_limit: str | None = None,
    size_budget: str | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> QuantizedNetwork:
    """Quantizes a trained classifier without any data; the network itself is left untouched.

    Args:
        network: images (N, C, H, W) -> logits (N, K).
        bits: "w4a4" and the like: 2 to 8 for weights and activations, 32 to leave one alone; or "auto": each layer's
            weights in 2, 4 or 8 bits within `size_budget`, activations in 8.
        input_shape: (C, H, W).
        protocol: which tensors are quantized: "deploy", "gdfq" or "genie".
        effort: the budget: "fast", "balanced" or "best".
        mean, std: normalization of pixels in [0, 1] by channel, where known: synthetic images then
            keep to what a picture can hold, and the input's grid sets out from black and white.
        method: "causal", or one of the field's to compare with: "zeroq", "gdfq", "genie", "synq".
        device: "auto", "cpu", "cuda", "cuda:1".
        seed: on a CPU the same seed on the same machine gives the same bits; a GPU adds up in another order each time.
        memory_limit: "2GB" and the like: what the process should keep to; batches shrink to fit.
        size_budget: with bits "auto" what all weights may take: "600KB", or "0.6" of what they take at 8 bits.
        on_step: called after every step.

    Raises:
        CausalDFQError: an option or the network cannot be used; the message says what to do.
    """
    options = make_options(
        bits=bits,
        protocol=protocol,
        effort=effort,
        method=method,
        input_shape=input_shape,
        mean=mean,
        std=std,
        seed=seed,
        memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
        size_budget=None if size_budget is None else SizeBudget.parse(size_budget),
    )
    place = resolve_device(device)
    prepared = prepare(network, options)
    started = time.monotonic()
    run = start_run(prepared, options, place)
    metrics: Metrics = {}
    for report in train(run):
        metrics |= report.metrics
        if on_step is not None:
            on_step(report)
    return finish(prepared, run, options, metrics, time.monotonic() - started)


def prepare(network: nn.Module, options: Options) -> PreparedNetwork:
    """Captures the network, folds BatchNorm, equalizes channels where that pays, and places the protocol's quantizers.

    Raises:
        NetworkError: the network cannot be captured, or has nothing to quantize.
        ConfigError: 32 bits for both, a method that needs BatchNorm where there is none, a memory limit where
            batches are fixed, or a size budget that no choice of bits meets.
    """
    if options.widths.weight == FLOAT_BITS and options.widths.activation == FLOAT_BITS:
        raise ConfigError("bits w32a32 leave everything in float: choose 2 to 8 for weights, activations or both")
    captured = capture(network, options.input_shape)
    if not weight_layer_nodes(captured.graph):
        hint = "; it was saved after run_decompositions, which takes them apart: save what torch.export.export gives"
        is_decomposed = any(node.target in DECOMPOSED_LAYERS for node in captured.graph.nodes)
        raise NetworkError(
            "the network has no convolution and no linear layer: there is nothing to quantize"
            + (hint if is_decomposed else "")
        )
    if options.method != "causal" and not batch_norm_nodes(captured.graph):
        raise ConfigError(
            f"the method {options.method} makes images from BatchNorm's statistics, and the network has no BatchNorm: "
            "quantize it with the method causal"
        )
    if options.memory_limit is not None and METHODS[options.method].synthesis != "generator":
        raise ConfigError(
            f"a memory limit is not possible with the method {options.method}: its batches are fixed; leave it out"
        )
    folded = fold_batch_norm(captured)
    if options.size_budget is not None:
        weights = weight_counts(folded)
        check_budget(weights, options.size_budget.in_bytes(sum(weights)))
    equalized = equalize(folded, captured) if _is_equalized(options) else folded
    return PreparedNetwork(captured, folded, equalized, place_quantizers(equalized, options.widths, options.protocol))


def _is_equalized(options: Options) -> bool:
    """Where it pays [ours].

    Gradient steps on Q find their own scales. Factors take from the weights that read a tensor what they give to its
    grid: that wins where activations have no more bits than weights.
    """
    widths = options.widths
    activations_are_coarser = widths.activation <= widths.weight < FLOAT_BITS and options.bits != AUTO_BITS
    return activations_are_coarser and options.method == "causal" and not chosen_budget(options).trains_student


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is CUDA where there is one.

    Raises:
        ConfigError: unknown, or not to be had on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known: use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} is not to be had: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def start_run(prepared: PreparedNetwork, options: Options, device: torch.device) -> Equilibrium:
    """A run at its first step.

    Raises:
        ConfigError: the memory limit is too small for this network.
    """
    budget, synthesis = chosen_budget(options), chosen_synthesis(prepared.captured, options)
    run = Equilibrium(
        NetworkViews(prepared.captured, prepared.equalized, prepared.quantized),
        options.input_shape,
        options.pixel_bounds,
        budget.without_generator() if synthesis == "imprints" else budget,
        chosen_recipe(options),
        options.seed,
        device,
        synthesis,
        None if options.size_budget is None else options.size_budget.in_bytes(sum(weight_counts(prepared.folded))),
    )
    run.leave_out_unseen_imprints()
    if options.memory_limit is not None:
        memory = step_memory(run)
        run.use_recipe(fit_recipe(run.recipe, memory, options.memory_limit))
        run.rounding = RoundingSettings.within(options.memory_limit - memory.fixed)
        run.leave_out_unseen_imprints()
    return run


def weight_counts(folded: fx.GraphModule) -> list[int]:
    """How many weights each layer has."""
    layers = weight_layer_nodes(folded.graph)
    return [attribute(folded, f"{LAYERS}.{layer.name}.weight").numel() for layer in layers]


def chosen_synthesis(captured: fx.GraphModule, options: Options) -> Synthesis:
    """Where the images come from: as the options' method has it, but from imprints alone where nothing trains G.

    Without BatchNorm there is nothing to hold a generator to; a budget without warm-up leaves it out.
    """
    synthesis = METHODS[options.method].synthesis
    has_generator = chosen_budget(options).warmup_steps > 0 and bool(batch_norm_nodes(captured.graph))
    return synthesis if synthesis != "generator" or has_generator else "imprints"


def chosen_budget(options: Options) -> Budget:
    """The budget of the options' method and effort for their images."""
    return METHODS[options.method].budgets_for(options.input_shape)[options.effort]


def chosen_recipe(options: Options) -> Recipe:
    """The recipe of the options' method for their images."""
    return recipe_for(options.input_shape, METHODS[options.method].recipe)


@contextlib.contextmanager
def arithmetic(run: Equilibrium) -> Iterator[None]:
    """Float32 as such, and compiled where that pays for itself in the whole run."""
    is_compiled = pays_for_compilation(run.budget, run.recipe, run.image_shape)
    with float32_convolutions(), fusion(run.device) if is_compiled else contextlib.nullcontext():
        yield


def train(run: Equilibrium, steps_done: int = 0) -> Iterator[StepReport]:
    """Runs the remaining steps; after each, the run can be saved or left.

    The causal analysis joins the metrics when Q is calibrated and not yet trained, and after the last step.

    Raises:
        NetworkError: something of Q is not finite then.
    """
    keep_freed_memory()
    for step in range(steps_done, run.total_steps):
        with arithmetic(run):
            metrics = run.run_step(step)
        if step in (run.steps_before_calibration, run.total_steps - 1):
            _require_finite(run.quantized)
            metrics |= analyse(run)
        yield StepReport(step + 1, run.total_steps, run.phase(step), metrics)


def finish(
    prepared: PreparedNetwork, run: Equilibrium, options: Options, metrics: Metrics, seconds: float
) -> QuantizedNetwork:
    """The finished network of a run whose last step is done."""
    record = _record(prepared, run, options, metrics, seconds)
    return QuantizedNetwork(_frozen(prepared, options), prepared.folded.cpu(), record)


def _frozen(prepared: PreparedNetwork, options: Options) -> fx.GraphModule:
    """The trained network in integers, and in their arithmetic where the protocol simulates an integer runtime.

    Raises:
        NetworkError: something of it is not finite.
    """
    frozen = freeze(prepared.quantized)
    _require_finite(frozen)
    if options.protocol == "deploy":
        avoid_ties(frozen)
        simulate_integers(frozen)
    return frozen


def _require_finite(quantized: nn.Module) -> None:
    for name, tensor in quantized.state_dict().items():
        # A constant of the network's own, such as a mask, may be infinite.
        is_trained = name.split(".")[0] in (LAYERS, WEIGHT_QUANTIZERS, ACTIVATION_QUANTIZERS)
        if is_trained and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NetworkError(
                f"{name} of the quantized network is not finite: its training has diverged; nothing of it can be used, "
                "try other bits or another effort"
            )


def gallery(run: Equilibrium, seed: int) -> tuple[Tensor, Tensor | None]:
    """Images (contents, styles, C, H, W) of a run's generator and the labels (contents); without one, of its pool."""
    if not isinstance(run.synthesis, GeneratorTraining):
        pool = run.synthesis.state if isinstance(run.synthesis, PoolTraining) else run.synthesis.imprints
        images = pool.images[: GALLERY_CONTENTS * GALLERY_STYLES].float().cpu()
        columns = min(GALLERY_STYLES, len(images))
        return images[: len(images) // columns * columns].unflatten(0, (-1, columns)), None
    random = torch.Generator().manual_seed(seed)
    classes = run.views.classes
    labels = torch.arange(GALLERY_CONTENTS) * classes // GALLERY_CONTENTS if classes > GALLERY_CONTENTS else None
    content = run.synthesis.model.sample(CONTENT, GALLERY_CONTENTS, random)
    chosen = labels if labels is not None else torch.arange(GALLERY_CONTENTS) % classes
    styles = run.synthesis.model.sample(STYLE, GALLERY_STYLES, random)
    contents = Content.of_classes(chosen.to(run.device), content.variation)
    with run.views.autocast():
        # No more at a time than a step has: a picture must not need more memory than the run.
        images = sample_grid(run.synthesis.generator, contents, styles, run.recipe.generator_images)
    return images.cpu(), chosen


def versions() -> dict[str, str]:
    """What a run's numbers depend on besides its options and its network."""
    return {
        "causal_dfq": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


def _record(
    prepared: PreparedNetwork, run: Equilibrium, options: Options, metrics: Metrics, seconds: float
) -> RunRecord:
    started = time.monotonic()
    sensitivities = layer_sensitivities(run.views, run.sensitivity_images())
    return RunRecord(
        options=options,
        network_digest=prepared.digest,
        device=str(run.device),
        threads=torch.get_num_threads(),
        versions=versions(),
        budget=asdict(run.budget),
        recipe=asdict(run.recipe),
        steps=run.total_steps,
        seconds=seconds + time.monotonic() - started,
        causal_model=str(run.synthesis.model) if isinstance(run.synthesis, GeneratorTraining) else "",
        has_statistics=prepared.has_statistics,
        last_metrics=metrics,
        sensitivities={name: next(iter(costs.values())) for name, costs in sensitivities.items()},
    )
