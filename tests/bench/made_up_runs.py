"""Runs of the accuracy bench as its results files hold them, made up."""

from typing import Any

from bench import accuracy

MACHINE = {"cores": 2, "processor": "CPU"}
COMMAND = "python -m bench.accuracy --only 'akamaster gdfq w4a4' --seeds 0"


def run(seed: int, drop: float, method: str = "causal", effort: str = "best", row: int = 0) -> dict[str, Any]:
    of = accuracy.ROWS[row]
    return {
        "network": of.network,
        "protocol": of.protocol,
        "bits": of.bits,
        "method": method,
        "effort": effort,
        "seed": seed,
        "seconds": 600.0,
        "peak_memory_gb": 1.0,
        "top1": 91.62 - drop,
        "float_top1": 91.62,
        "drop": drop,
        "agreement": 98.0 - drop,
        "drop_standard_error": 0.3,
        "images": 5000,
        "threads": 1,
        "jobs": 1,
        "last_metrics": {"analysis_cka": 0.9 - drop / 100},
        "origin": {"command": COMMAND, "machine": MACHINE, "versions": {"torch": "2.9"}},
        "commit": "abcdef0123",
    }


RUNS = [{**run(1, 1.0), "seconds": 720.0}, {**run(0, 0.5), "seconds": 480.0}, run(0, 2.0, "genie"), run(0, 5.0, row=1)]


def elsewhere(found: dict[str, Any]) -> dict[str, Any]:
    """The run on another processor."""
    return {**found, "origin": {**found["origin"], "machine": {**MACHINE, "processor": "another"}}}
