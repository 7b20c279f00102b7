"""The command line: reads options, calls the package, prints what happened."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from causal_dfq.config import Effort, Method, Protocol, SizeBudget, make_options, parse_bytes
from causal_dfq.errors import CausalDFQError, ConfigError
from causal_dfq.export.onnx_file import Profile, Storage, export_onnx
from causal_dfq.pipeline import resolve_device
from causal_dfq.progress import StepProgress, progress_bar
from causal_dfq.summary import summary_table, table_of_facts
from causal_dfq.version import __version__

FileFormat = Literal["onnx", "pt2"]
USER_ERROR, INTERRUPTED = 2, 130
# Characters, more than a row of any table has: files and pipes have no edge.
_NO_EDGE = 10_000
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize a trained vision network to low bits without any data.",
)
output = Console(highlight=False)
messages = Console(stderr=True, highlight=False)


def run() -> None:
    """The entry point: user errors become one sentence and exit code 2."""
    # `package.module:factory` is looked up from where the user stands, as with `python -m`.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        app()
    except CausalDFQError as error:
        messages.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        messages.print("interrupted")
        raise SystemExit(INTERRUPTED) from None


def print_table(table: Table) -> None:
    """Prints to standard output: fitted into a terminal, into a file or a pipe with every row as wide as it is."""
    console = output if output.is_terminal else Console(highlight=False, width=_NO_EDGE)
    console.print(table)


def _version(is_asked: bool) -> None:
    if is_asked:
        output.print(f"causal-dfq {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "3x32x32" -> (3, 32, 32).

    Raises:
        ConfigError: another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--input-shape {text!r} is not understood: write channels, height, width like 3x224x224")
    channels, height, width = map(int, parts)
    return channels, height, width


def parse_values(name: str, text: str | None) -> tuple[float, ...] | None:
    """ "0.5,0.5,0.5" -> (0.5, 0.5, 0.5); None stays None.

    Raises:
        ConfigError: not numbers.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} is not understood: write one number a channel, like 0.5,0.5,0.5") from error


@app.command()
def quantize(
    network: Annotated[
        str,
        typer.Argument(
            help="A bundled name, torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 file.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result.", show_default=False)],
    bits: Annotated[str, typer.Option(help="Weights and activations: 2 to 8, or 32 for float; or auto.")] = "w4a4",
    protocol: Annotated[Protocol, typer.Option(help="Which tensors are quantized.")] = "deploy",
    effort: Annotated[Effort, typer.Option(help="The budget.")] = "balanced",
    method: Annotated[Method, typer.Option(help="causal, or one of the field's to compare with.")] = "causal",
    input_shape: Annotated[str | None, typer.Option(help="Like 3x32x32, where the source does not tell.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of pixels in [0, 1], one value a channel: 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="On a CPU the same seed gives the same bits.")] = 0,
    memory_limit: Annotated[str | None, typer.Option(help="Like 2GB: batches shrink to fit.")] = None,
    size_budget: Annotated[
        str | None, typer.Option(help="With bits auto, of all weights: 600KB, or 0.6 of their size at 8 bits.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Quantize a trained network; no image is needed."""
    from causal_dfq.network.load import load_network
    from causal_dfq.run_folder import Interrupted, Source, quantize_to_folder

    chosen_shape = None if input_shape is None else parse_shape(input_shape)
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    chosen_mean, chosen_std = parse_values("--mean", mean), parse_values("--std", std)
    place = resolve_device(device)
    size = None if size_budget is None else SizeBudget.parse(size_budget)
    # Wrong bits are told before a network is loaded for minutes.
    make_options(
        bits=bits,
        protocol=protocol,
        effort=effort,
        method=method,
        input_shape=chosen_shape or (3, 32, 32),
        seed=seed,
        size_budget=size,
    )
    loaded = load_network(network, weights)
    shape = chosen_shape or loaded.input_shape
    if shape is None:
        raise ConfigError(f"{network} does not tell its input shape: give --input-shape, like 3x224x224")
    # A mean of the user's and a deviation of the source's would be nobody's normalization.
    is_chosen = chosen_mean is not None or chosen_std is not None
    mean_values, std_values = (chosen_mean, chosen_std) if is_chosen else (loaded.mean, loaded.std)
    options = make_options(
        bits=bits,
        protocol=protocol,
        effort=effort,
        method=method,
        input_shape=shape,
        mean=mean_values,
        std=std_values,
        seed=seed,
        memory_limit=limit,
        size_budget=size,
    )
    command = shlex.join(["causal-dfq", *sys.argv[1:]])
    source = Source(network, weights, command)
    try:
        with StepProgress(messages) as progress:
            quantized = quantize_to_folder(loaded.network, options, place, out, source, resume, progress.show)
    except Interrupted as interruption:
        messages.print(f"{interruption}; go on with the same command and --resume")
        raise typer.Exit(INTERRUPTED) from None
    print_table(summary_table(quantized, out))


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="What quantize wrote.", metavar="DIR", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="An ImageFolder, a folder with images/ and labels.csv, or an .npz with images and labels.",
            show_default=False,
        ),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too, replacing.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure a quantized network, and its float parent, on labelled images."""
    from causal_dfq.data.labelled import Preprocessing, open_labelled
    from causal_dfq.evaluation import evaluate_pair, render_table
    from causal_dfq.files import check_target, write_text
    from causal_dfq.quantized import load

    if json_file is not None:
        check_target(json_file, force=True)
    quantized = load(folder)
    options = quantized.record.options
    if options.mean is None or options.std is None:
        raise ConfigError(
            f"{folder} was quantized without a normalization, so pixels cannot be turned into its inputs: "
            "quantize with --mean and --std"
        )
    images = open_labelled(data, Preprocessing(options.input_shape, options.mean, options.std))
    with progress_bar("evaluating", messages) as bar:
        task = bar.add_task("images", total=len(images), note="")
        evaluation = evaluate_pair(
            quantized,
            quantized.reference,
            images,
            resolve_device(device),
            on_batch=lambda done, total: bar.update(task, completed=done, total=total),
        )
    name = quantized.record.reference or "network"
    print_table(render_table(evaluation, f"{name}  {options.bits}  {options.protocol}  {options.effort}"))
    if json_file is not None:
        entry = {
            "network": name,
            "options": options.model_dump(mode="json"),
            "data": str(data),
            "command": shlex.join(["causal-dfq", *sys.argv[1:]]),
            "versions": quantized.record.versions,
            **evaluation.as_dict(),
        }
        write_text(json_file, json.dumps(entry, indent=2) + "\n")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="What quantize wrote.", metavar="DIR", show_default=False)],
    file_format: Annotated[FileFormat, typer.Option("--format", help="onnx: integers. pt2: the simulation.")] = "onnx",
    storage: Annotated[Storage, typer.Option(help="fast: INT8 weights. packed: INT4 and INT2, a small file.")] = "fast",
    profile: Annotated[Profile, typer.Option(help="tensorrt: signed activations without zero point.")] = "default",
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="8-bit weights in 7 bits, for processors without VNNI.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The file; model.onnx or model.pt2 in DIR if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a quantized network for another program, and check what it computes there."""
    from causal_dfq.quantized import load

    path = out or folder / f"model.{file_format}"
    quantized = load(folder)
    if file_format == "pt2":
        from causal_dfq.export.torch_file import export_torch

        if (storage, profile, reduce_range) != ("fast", "default", False):
            raise ConfigError("--storage, --profile and --reduce-range are of the ONNX file: leave them out with pt2")
        output.print(f"written   {escape(str(export_torch(quantized, path, force=force)))}", soft_wrap=True)
        return
    with messages.status("exporting"):
        exported = export_onnx(quantized, path, storage, profile=profile, reduce_range=reduce_range, force=force)
    parity, fusion = exported.parity, exported.fusion
    differing = sum(layer.share > 0 for layer in parity.layers)
    worst = max((layer.steps for layer in parity.layers), default=0.0)
    table = table_of_facts()
    table.add_row(
        "written",
        f"{escape(str(exported.path))}: {exported.size / 1e6:.2f} MB, opset {exported.opset}, {storage} storage",
    )
    table.add_row(
        "parity",
        f"{100 * parity.agreement:.1f} % of {parity.images} synthetic images have the simulation's class; of "
        f"{len(parity.layers)} tensors {differing} differ, by {worst:.0f} steps at most",
    )
    table.add_row("integers", f"{fusion.fused} of {fusion.total} convolutions and matrix products in ONNX Runtime")
    print_table(table)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="What quantize wrote.", metavar="DIR", show_default=False)],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too, replacing.")] = None,
) -> None:
    """Show bits, bytes, ranges and sensitivity of each layer, the most sensitive first."""
    from causal_dfq.files import check_target, write_text
    from causal_dfq.inspection import inspect_layers, layer_table
    from causal_dfq.quantized import load

    if json_file is not None:
        check_target(json_file, force=True)
    reports = inspect_layers(load(folder))
    print_table(layer_table(reports))
    output.print("KL: of the float network's answers to those with this layer's weights alone rounded")
    if json_file is not None:
        write_text(json_file, json.dumps([asdict(report) for report in reports], indent=2) + "\n")


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(help="What quantize wrote.", metavar="DIR", show_default=False)],
    threads: Annotated[int, typer.Option(min=1, help="Of every runtime.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each network in turn; the median counts.")] = 50,
) -> None:
    """Measure latency and file size, float against quantized, in ONNX Runtime and, where installed, OpenVINO."""
    from causal_dfq.export.latency import FLOAT, QUANTIZED, file_sizes, measure_latency
    from causal_dfq.quantized import load

    quantized = load(folder)
    with messages.status("measuring"):
        sizes = file_sizes(quantized)
        measured = measure_latency(quantized, threads, rounds)
    table = Table(title=f"{quantized.record.options.bits}, {threads} threads, median of {rounds}")
    for column in ("runtime", "batch", f"{FLOAT}, ms", f"{QUANTIZED}, ms", "times faster"):
        table.add_column(column, justify="left" if column == "runtime" else "right", overflow="fold")
    by_case = {(each.runtime, each.batch, each.network): each.milliseconds for each in measured.latencies}
    for runtime, batch in dict.fromkeys((each.runtime, each.batch) for each in measured.latencies):
        before, after = by_case[runtime, batch, FLOAT], by_case[runtime, batch, QUANTIZED]
        table.add_row(runtime, str(batch), f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}")
    print_table(table)
    for runtime, reason in measured.refused.items():
        messages.print(f"{runtime} does not run it: {escape(reason)}")
    for name, size in (("float32", sizes.float32), ("fast", sizes.fast), ("packed", sizes.packed)):
        output.print(f"{name:>8}  {size / 1e6:8.2f} MB  {size / sizes.float32:.3f} of float32")


@app.command()
def models() -> None:
    """List the bundled networks and the other ways to name one."""
    from causal_dfq.zoo.bundled import BUNDLED, read_card

    table = Table(title="bundled networks")
    for column in ("name", "input", "classes", "top-1 in %, float32"):
        table.add_column(column, overflow="fold")
    for name in BUNDLED:
        card = read_card(name)
        accuracy = "; ".join(f"{value:.2f} ({data})" for data, value in card.top1.items())
        table.add_row(name, "x".join(map(str, card.input_shape)), str(card.classes), accuracy)
    print_table(table)
    output.print("Also: torchvision:NAME, timm:NAME, package.module:factory, FILE.pt2 (see quantize --help).")
