"""What a person sees while long work runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from causal_dfq.pipeline import StepReport
from causal_dfq.training.equilibrium import EQUILIBRIUM, FINISH, IMPRINT, RECONSTRUCTION, ROUNDING, WARMUP


def progress_bar(title: str, console: Console) -> Progress:
    """A bar with counts, times and a note of the task's own."""
    return Progress(
        TextColumn("[bold]{task.description}", justify="right"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=4,
    )


class StepProgress:
    """A bar with the rate, the remaining time and the measured quantities of the equilibrium."""

    def __init__(self, console: Console) -> None:
        self._bar = progress_bar("quantize", console)
        self._task: TaskID | None = None
        self._first_step = 0
        self._metrics: dict[str, float] = {}

    def __enter__(self) -> StepProgress:
        self._bar.start()
        self._task = self._bar.add_task("capture", total=None, note="")
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, report: StepReport) -> None:
        """Moves the bar by one step."""
        assert self._task is not None
        task = self._bar.tasks[0]
        if task.total is None:
            self._first_step = report.step - 1
            self._bar.reset(self._task, total=report.total, completed=report.step - 1)
        self._metrics |= report.metrics
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = (report.step - self._first_step) / elapsed if elapsed else 0.0
        note = f"{rate:.1f} step/s  " + _describe(report.phase.name, self._metrics)
        self._bar.update(self._task, completed=report.step, description=report.phase.name, note=note)


def _describe(phase: str, metrics: dict[str, float]) -> str:
    if phase == IMPRINT and "statistics_loss" not in metrics:
        return f"class {metrics['class_loss']:.3f}"
    if phase in (WARMUP, IMPRINT) and "statistics_loss" in metrics:
        return f"class {metrics['class_loss']:.3f}  BNS {metrics['statistics_loss']:.3f}"
    if phase in (ROUNDING, RECONSTRUCTION) and "unit_error_after" in metrics:
        return f"unit error {metrics['unit_error_before']:.4f} to {metrics['unit_error_after']:.4f}"
    if phase in (EQUILIBRIUM, FINISH) and "discrepancy" in metrics:
        return (
            f"loss {metrics['student_loss']:.3f}  discrepancy {metrics['discrepancy']:.3f}  "
            f"sensitivity P {metrics['sensitivity_pretrained']:.3f} Q {metrics['sensitivity_quantized']:.3f}"
        )
    if phase in (EQUILIBRIUM, FINISH) and "student_loss" in metrics:
        return f"loss {metrics['student_loss']:.3f}  agreement {metrics['agreement']:.3f}"
    return ""
