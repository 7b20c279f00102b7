"""A run of the package's own algorithm in which one thing is changed: for references and ablations."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.networks import Subject
from causal_dfq.config import make_options
from causal_dfq.pipeline import finish, prepare, resolve_device, start_run, train
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.training.equilibrium import Equilibrium


def quantize_changed(
    subject: Subject, bits: str, protocol: str, effort: str, seed: int, change: Callable[[Equilibrium], None]
) -> QuantizedNetwork:
    """`causal_dfq.quantize` on the CPU; `change` alters the run before its first step."""
    options = make_options(
        bits=bits,
        protocol=protocol,
        effort=effort,
        input_shape=subject.input_shape,
        mean=subject.mean,
        std=subject.std,
        seed=seed,
    )
    started = time.monotonic()
    prepared = prepare(subject.network, options)
    run = start_run(prepared, options, resolve_device("cpu"))
    change(run)
    metrics: dict[str, float] = {}
    for report in train(run):
        metrics |= report.metrics
    return finish(prepared, run, options, metrics, time.monotonic() - started)
