"""Images made once for several runs: what synthesis gives depends on the network and the seed, not on the bits."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from safetensors import safe_open

from causal_dfq.files import detached_state, write_tensors
from causal_dfq.pipeline import arithmetic
from causal_dfq.training.checkpoint import restore_state, run_state
from causal_dfq.training.equilibrium import Equilibrium

_OF_SYNTHESIS = ("generator.", "generator_optimizer.", "imprint_optimizer.", "random")
_SECONDS = "seconds"


def synthesize(run: Equilibrium, path: Path) -> float:
    """Brings a run to its calibration, by the file of an earlier run or by making the file; the bits are the same.

    Returns:
        The seconds that making the images took, then or now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        # Of two runs side by side that need the same images, one makes them.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            started = time.monotonic()
            for step in range(run.steps_before_calibration):
                with arithmetic(run):
                    run.run_step(step)
            state = {name: value for name, value in run_state(run).items() if name.startswith(_OF_SYNTHESIS)}
            seconds = time.monotonic() - started
            write_tensors(path, detached_state(state), {_SECONDS: str(seconds)})
            return seconds
    with safe_open(path, "pt") as file:
        made = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        seconds = float(file.metadata()[_SECONDS])
    restore_state(run, {**run_state(run), **made})
    return seconds
