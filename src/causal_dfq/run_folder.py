"""A run in a folder: log, checkpoints, resume, and the finished files."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from causal_dfq.config import Options
from causal_dfq.errors import OutputError
from causal_dfq.files import is_partial, output_error, write_atomically, write_text
from causal_dfq.pipeline import (
    PreparedNetwork,
    StepReport,
    finish,
    gallery,
    prepare,
    start_run,
    train,
    versions,
)
from causal_dfq.quantized import CONFIG_FILE, FLOAT_FILE, MODEL_FILE, QuantizedNetwork, is_quantized_folder, load
from causal_dfq.synthesis.gallery import draw_grid
from causal_dfq.training.checkpoint import CHECKPOINT_FILE, CheckpointFile, Progress, restore_state
from causal_dfq.training.equilibrium import Equilibrium, Metrics

LOG_FILE, SAMPLES_FILE = "log.jsonl", "samples.png"
# What evaluations and exports are called where the user names no other file lies beside.
_BESIDE = {"evaluation.json", "model.onnx", "model.pt2"}
_OWN_FILES = {LOG_FILE, SAMPLES_FILE, CONFIG_FILE, CHECKPOINT_FILE, MODEL_FILE, FLOAT_FILE} | _BESIDE
# Weights, gradient, two moments and the checkpoint in writing.
_DISK_BYTES_PER_VALUE = 4 * 6


@dataclass(frozen=True)
class Source:
    """How the user named the network: it goes into the record, so that the run can be repeated."""

    reference: str
    weights: Path | None
    command: str


class Interrupted(Exception):
    """The user stopped the run; its checkpoint is written."""

    def __init__(self, step: int, total: int) -> None:
        super().__init__(f"interrupted after step {step} of {total}")


def quantize_to_folder(
    network: nn.Module,
    options: Options,
    device: torch.device,
    folder: Path,
    source: Source,
    resume: bool,
    on_step: Callable[[StepReport], None],
) -> QuantizedNetwork:
    """Quantizes into a folder; the folder is finished when its config.json is there.

    Raises:
        NetworkError, ConfigError: before anything is written; NetworkError also where the training has diverged.
        OutputError: the folder holds something else, another run, or cannot be written.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    _check_folder(folder, resume)
    prepared = prepare(network, options)
    if (folder / CONFIG_FILE).exists():
        return _already_finished(folder, _settings(options, prepared.digest))
    _check_disk_space(folder, prepared)
    run = start_run(prepared, options, device)
    fingerprint = _settings(options, prepared.digest) | _surroundings(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    progress = _run_steps(run, folder, resume, fingerprint, on_step)
    metrics = _last_metrics(folder / LOG_FILE)
    quantized = finish(prepared, run, options, metrics, progress.seconds)
    images, labels = gallery(run, options.seed)
    write_atomically(folder / SAMPLES_FILE, lambda path: draw_grid(images, labels, options.mean, options.std, path))
    return _save(quantized, folder, source)


def _save(quantized: QuantizedNetwork, folder: Path, source: Source) -> QuantizedNetwork:
    weights = None if source.weights is None else str(source.weights)
    update = {"reference": source.reference, "weights": weights, "command": source.command}
    quantized.record = quantized.record.model_copy(update=update)
    quantized.save(folder)
    CheckpointFile(folder).remove()
    return quantized


def _run_steps(
    run: Equilibrium,
    folder: Path,
    resume: bool,
    fingerprint: dict[str, str],
    on_step: Callable[[StepReport], None],
) -> Progress:
    checkpoint = CheckpointFile(folder)
    progress = Progress(0, 0.0, fingerprint)
    if resume and checkpoint.path.exists():
        progress, state = checkpoint.read()
        _check_same_run(folder, progress.fingerprint, fingerprint)
        restore_state(run, state)
    _cut_log(folder / LOG_FILE, progress.steps_done)
    before, started = progress.seconds, time.monotonic()
    with _deferred_interrupt() as interrupted, _open_log(folder / LOG_FILE) as write_line:
        for report in train(run, progress.steps_done):
            seconds = before + time.monotonic() - started
            write_line({"step": report.step, "phase": report.phase.name, "seconds": round(seconds, 3)} | report.metrics)
            on_step(report)
            progress = Progress(report.step, seconds, fingerprint)
            is_last = report.step == report.total
            if checkpoint.due() or interrupted() or is_last:
                checkpoint.write(run, progress)
            if interrupted() and not is_last:
                raise Interrupted(report.step, report.total)
    return progress


def _check_folder(folder: Path, resume: bool) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file: name another folder with --out")
        found = {path.name for path in folder.iterdir() if not is_partial(path)} if folder.exists() else set()
        strangers = sorted(found - _OWN_FILES) or ([] if _is_run(folder, found) else sorted(found))
    except OSError as error:
        raise OutputError(f"cannot read {folder}: {error.strerror or error}") from error
    if strangers:
        raise OutputError(
            f"{folder} holds something else ({', '.join(strangers[:3])}): name an empty or new folder with --out"
        )
    if found and not resume:
        kind = "a finished run" if CONFIG_FILE in found else "an unfinished run"
        hint = "name another folder with --out" if CONFIG_FILE in found else "go on with it by --resume"
        raise OutputError(f"{folder} already holds {kind}: {hint}, or remove the folder")


def _is_run(folder: Path, found: set[str]) -> bool:
    """Whether the files are a run's, and not somebody's files of the same names."""
    if CHECKPOINT_FILE in found or is_quantized_folder(folder):
        return True
    if LOG_FILE not in found or CONFIG_FILE in found:
        return False
    with (folder / LOG_FILE).open(encoding="utf-8", errors="replace") as log:
        first = log.readline()
    # A kill may have cut the only line.
    return first.startswith('{"step": ') or first in '{"step": '


def _already_finished(folder: Path, settings: dict[str, str]) -> QuantizedNetwork:
    quantized = load(folder)
    record = quantized.record
    _check_same_run(folder, _settings(record.options, record.network_digest), settings)
    CheckpointFile(folder).remove()
    return quantized


def _settings(options: Options, digest: str) -> dict[str, str]:
    """What the user chose."""
    entries = {name: json.dumps(value) for name, value in options.model_dump(mode="json").items()}
    return {**entries, "network's weights": digest[:16]}


def _surroundings(run: Equilibrium) -> dict[str, str]:
    """What else decides the bits of a run; an unfinished one cannot go on under another.

    A memory limit changes recipe and budget, by what a step needs on this machine.
    """
    budget, recipe = asdict(run.budget), asdict(run.recipe)
    return {"device": run.device.type, "budget": json.dumps(budget), "recipe": json.dumps(recipe), **versions()}


def _check_same_run(folder: Path, found: dict[str, str], wanted: dict[str, str]) -> None:
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise OutputError(
                f"{folder} holds a run with other settings: {name} was {found.get(name)}, now {wanted[name]}; "
                "resume with the old settings or name another folder with --out"
            )


def _check_disk_space(folder: Path, prepared: PreparedNetwork) -> None:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    values = sum(tensor.numel() for tensor in prepared.captured.state_dict().values())
    needed = values * _DISK_BYTES_PER_VALUE + 64 * 2**20
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"no disk space for {folder}: the run needs about {needed / 2**20:.0f} MB, {free / 2**20:.0f} MB are free"
        )


@contextmanager
def _open_log(path: Path) -> Iterator[Callable[[dict[str, object]], None]]:
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise output_error(path, error) from error

    def write_line(entry: dict[str, object]) -> None:
        try:
            file.write(json.dumps(entry) + "\n")
            file.flush()
        except OSError as error:
            raise output_error(path, error) from error

    try:
        yield write_line
    finally:
        # What a full disk has kept from the file was told above.
        with suppress(OSError):
            file.close()


def _cut_log(path: Path, steps_done: int) -> None:
    """Keeps the lines up to the checkpoint: later steps are done again."""
    if not path.exists():
        return
    kept = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[:steps_done]
    write_text(path, "".join(kept))


def _last_metrics(path: Path) -> Metrics:
    """The last value of every quantity in the log; of a line that a power cut has damaged, nothing."""
    metrics: Metrics = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, AttributeError):
            entry = json.loads(line)
            metrics |= {name: value for name, value in entry.items() if name not in ("step", "phase", "seconds")}
    return metrics


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted and served between steps, so that a checkpoint is never of half a step."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
