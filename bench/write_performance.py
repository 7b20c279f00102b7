"""Writes docs/performance.md from the results of bench.speed and bench.scaling.

python -m bench.write_performance
"""

from __future__ import annotations

import json
from typing import Any

from bench import scaling, speed
from bench.environment import ROOT
from causal_dfq.files import write_text

PAGE = ROOT / "docs" / "performance.md"

_INTRODUCTION = """# Performance

What a run costs on a CPU, where the time goes, and what was done about it. Everything that is compared was run in
turn in one process; a time is the median over the turns, a ratio the median of the ratios turn by turn."""

_WAYS = """## What was done

- **channels_last and bfloat16 autocast** wherever the processor multiplies bfloat16. The gradient of what a
  depthwise convolution reads is one itself (`training/depthwise.py`); torch's own is slow in bfloat16. Depthwise
  weights that are trained stay in float32.
- **One pass over memory for everything between two convolutions.** A quantized activation is clipped, compared with
  P's feature and rounded in one kernel each way (`training/measured_rounding.py`); P's BatchNorm is applied,
  clipped and given the gradient of its statistics in one (`synthesis/measured_norm.py`); the generator's
  normalization, style and activation are one (`synthesis/styled_norm.py`). Each is an autograd function that keeps
  inputs and no masks; torch.compile makes its kernel, and without a compiler the same formulas run as operators.
- **Adam is one pass over each group of parameters**; as a chain of operators its dispatch took longer.
- **The generator's last convolution is a matrix product over taps**: three output channels leave a convolution's vector
  units idle (`synthesis/middle_convolution.py`).
- **Gradients of what styles and pairs share are added up**, not summed over a dimension or scattered by index; torch's
  sum over two styles takes many times as long as their addition.
- **Weights are rounded once a step**, all gradients of a grid come out of the pass that makes the gradient of the
  values.
- **The generator convolves at the small size**: a 3x3 kernel on an upsampled map sees 2x2 different values
  (`synthesis/upsampling.py`), the same function for half the work.
- **Statistics come out of sums over each image**, taken in the pass that normalizes; BatchNorm's own kernel, which
  serves where nothing is compiled, takes several times as long.
- **The three channels of the images are normalized plane by plane**, where the kernel is several times faster than over
  interleaved pixels.
- **Gradients lie in channels_last too.** A mean, a crop and a loss over rows give theirs in another format, which a
  convolution then converts and an addition walks through slowly (`tests/training/test_memory_format.py` watches).
- **Freed memory stays with the process** (`allocator.py`): feature maps of large images are above the size from which
  glibc maps each block afresh, and the system clears its pages in every step.
- **Small tensors stay plain**: a kernel is laid out for the first tensor that it meets, and compiled for a small one
  it would leave the large ones to a single thread.

## What did not help

- Compiling short runs on small images: their few steps never earn back the seconds that compilation takes. They run
  the same formulas uncompiled; the limit counts pixels.
- The generator's 2x2 convolutions as a matrix product over gathered taps, or as one product and shifted sums: slower
  than oneDNN's convolution, the second several times.
- Padding the generator's last convolution from three outputs to eight or sixteen, or cropping before it: slower.
- Boolean masks in compiled sums: slower than the same choice by arithmetic.
- Adding the gradients of a residual's two readers inside the kernel that uses them: no difference beyond the noise.
- Gathering the gradient of the upsampled map in a compiled kernel: masks at its border made it several times slower
  than four strided copies.
- A narrower generator: its step is faster, but a ResNet-32 on CIFAR-100 loses more at w4a4.
- Python's garbage collector switched off: no difference beyond the noise."""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arithmetic_seconds(found: dict[str, Any]) -> dict[str, float]:
    """Seconds that the convolutions of each step would take at the rate of the bare network's training.

    The gradient costs as much as the forward pass for the inputs, and again for the weights: P in the generator's
    step has no gradient of its weights.
    """
    network, generator = found["operations"]["network"], found["operations"]["generator"]
    rate, batches = found["operations_per_second"], found["batches"]
    update = 3 * network
    return {
        "generator step": batches["generator"] * (3 * generator + 2 * network) / rate,
        "student step": batches["student"] * (generator + network + update) / rate,
        "student update": batches["student"] * update / rate,
    }


def steps_section(results: dict[str, Any]) -> str:
    """Each step beside its arithmetic, and the training step beside the bare network's."""
    rows, operations = [], []
    for name, found in results["steps"].items():
        floor = arithmetic_seconds(found)
        for step, seconds in floor.items():
            timing = found["steps"][step]
            rows.append(
                [
                    f"`{name}`, {step}",
                    f"{timing['median']:.3f} s",
                    f"{timing['images_per_second']:.0f}",
                    f"{seconds:.3f} s",
                    f"{100 * seconds / timing['median']:.0f} %",
                    f"{found['peak_tensors_gb'][step]:.2f} GB" if step in found["peak_tensors_gb"] else "",
                ]
            )
        operations.append(
            f"An image of `{name}` costs its generator {found['operations']['generator'] / 1e6:.0f} million "
            f"multiplications with addition forward, the network {found['operations']['network'] / 1e6:.0f} million."
        )
    return "\n".join(
        [
            "## Steps, and where their time goes",
            "",
            "Arithmetic is what the convolutions of a step would take at the speed that the bare float network's "
            "training reaches; the rest is memory traffic, losses and optimizers. A student step draws and "
            "generates its images, asks P, and then is the student update.",
            "",
            _table(["step", "time", "images/s", "arithmetic", "share", "tensors at most"], rows),
            "",
            " ".join(operations),
        ]
    )


def floor_section(results: dict[str, Any]) -> str:
    """The quantized training step over the bare network's, and other ways over the way taken."""
    rows, others = [], []
    for name, found in results["steps"].items():
        steps = found["steps"]
        for step, timing in steps.items():
            if f"batch {speed.FLOOR_BATCH}" in step:
                rows.append([f"`{name}`, {step}", f"{timing['median']:.3f} s", f"{timing['images_per_second']:.0f}"])
        for what, ratio in (
            ("quantized over float", found["training_step_over_floor"]),
            ("quantized over float, cross-entropy alone", found["network_alone_over_floor"]),
        ):
            quartiles = f"quartiles {ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}"
            rows.append([f"`{name}`, **{what}**", f"**{ratio['median']:.2f}**", quartiles])
        for step, timing in steps.items():
            taken = step.split(",")[0]
            if step.endswith(("not compiled", "in float32")):
                others.append(
                    [
                        f"`{name}`, {step}",
                        f"{timing['median']:.3f} s",
                        f"{timing['median'] / steps[taken]['median']:.2f}",
                    ]
                )
    return "\n".join(
        [
            "## The training step against its floor",
            "",
            "The floor is the same step of the bare float network, BatchNorm folded: same images, targets, losses, "
            "optimizer, layout and precision, no rounding. With cross-entropy alone neither side compares features.",
            "",
            _table(["step", "time", "images/s"], rows),
            "",
            "The same steps computed in other ways, over the way taken:",
            "",
            _table(["step", "time", "ratio"], others),
        ]
    )


def synthesis_section(results: dict[str, Any]) -> str:
    """Rates and times beside the peer's."""
    rows = []
    for name, found in results["synthesis"].items():
        rows.append(
            [
                f"`{name}`",
                f"{found['our_rate']['median']:.0f}",
                f"{found['peers_rate']['median']:.0f}",
                f"**{found['rate_over_peers']['median']:.1f}**",
                f"{found['our_seconds_to_that_loss']['median']:.1f} s",
                f"{found['peers_seconds']['median']:.1f} s ({found['peers_iterations']} iterations)",
                f"**{found['share_of_the_peers_time']['median']:.2f}**",
            ]
        )
    return "\n".join(
        [
            "## Synthesis against model-compression-toolkit",
            "",
            "Data generation of Sony's model-compression-toolkit 2.6.1 at its defaults in batches of 64. Rates are "
            "image-iterations a second; then the seconds until images have the BatchNorm loss that the peer ends at, "
            "by the peer's formula for both, compilation included.",
            "",
            _table(
                ["network", "ours", "the peer's", "ratio", "ours to that loss", "the peer's", "share"],
                rows,
            ),
        ]
    )


def runs_section(results: dict[str, Any]) -> str:
    """Whole runs."""
    rows = [
        [
            f"`{name.split()[0]}` {' '.join(name.split()[1:])}",
            f"{found['seconds']:.0f} s",
            f"{found['peak_memory_gb']:.1f} GB",
        ]
        for name, found in results["runs"].items()
    ]
    return "\n".join(
        [
            "## Whole runs",
            "",
            "From the network in memory to the quantized one, compilation included.",
            "",
            _table(["run", "time", "peak memory"], rows),
        ]
    )


def scaling_section(results: dict[str, Any]) -> str:
    """The plot, and how far it is from straight."""
    misses = [
        f"{kind}: off a straight line by at most {100 * found['line']['largest_miss']:.0f} %"
        for kind, found in results["scaling"].items()
    ]
    return "\n".join(
        ["## Cost is linear", "", "![Seconds against sizes](scaling.png)", "", *(f"- {miss}" for miss in misses)]
    )


def origin(results: dict[str, Any]) -> str:
    """Command, machine and versions of a results file."""
    machine = results["machine"]
    return (
        f"`{results['command']}`: {machine['cores']} cores of an {machine['processor']}, torch "
        f"{results['versions']['torch']}, commit {results['commit'][:10]}."
    )


def performance_page(of_speed: dict[str, Any], of_scaling: dict[str, Any]) -> str:
    """docs/performance.md."""
    sections = [
        _INTRODUCTION,
        runs_section(of_speed),
        steps_section(of_speed),
        floor_section(of_speed),
        *([synthesis_section(of_speed)] if of_speed["synthesis"] else []),
        _WAYS,
        scaling_section(of_scaling),
        f"## Origin\n\n- {origin(of_speed)}\n- {origin(of_scaling)}",
    ]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Rewrites the page."""
    of_speed, of_scaling = (json.loads(path.read_text()) for path in (speed.RESULTS, scaling.RESULTS))
    write_text(PAGE, performance_page(of_speed, of_scaling))


if __name__ == "__main__":
    main()
