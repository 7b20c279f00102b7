"""A run of the package's own algorithm in which one thing is changed: for references and ablations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.networks import Subject
from bench.shared_synthesis import synthesize
from causal_dfq.config import Effort, Method, Protocol, SizeBudget, make_options
from causal_dfq.pipeline import finish, prepare, resolve_device, start_run, train
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.training.equilibrium import Equilibrium


@dataclass(frozen=True)
class Case:
    """What a run is told beside the network."""

    bits: str
    protocol: Protocol
    effort: Effort
    seed: int
    method: Method = "causal"
    size_budget: SizeBudget | None = None
    device: str = "cpu"


def quantize_changed(
    subject: Subject,
    case: Case,
    change: Callable[[Equilibrium], None] = lambda run: None,
    images: Path | None = None,
) -> QuantizedNetwork:
    """`causal_dfq.quantize`; `change` alters the run before its first step.

    `images` is a file that runs with the same synthesis share: it is made where it is missing. The record's seconds
    hold the time that making it took.
    """
    options = make_options(
        bits=case.bits,
        protocol=case.protocol,
        effort=case.effort,
        method=case.method,
        input_shape=subject.input_shape,
        mean=subject.mean,
        std=subject.std,
        seed=case.seed,
        size_budget=case.size_budget,
    )
    started = time.monotonic()
    prepared = prepare(subject.network, options)
    run = start_run(prepared, options, resolve_device(case.device))
    change(run)
    steps_done, making = 0, 0.0
    if images is not None:
        before = time.monotonic()
        making = synthesize(run, images)
        making -= time.monotonic() - before
        steps_done = run.steps_before_calibration
    metrics: dict[str, float] = {}
    for report in train(run, steps_done):
        metrics |= report.metrics
    return finish(prepared, run, options, metrics, time.monotonic() - started + making)
