"""What a results file says of where its numbers come from."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
_UNKNOWN = "unknown"
_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "causal-dfq")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Command, commit, versions and machine, with its GPU where the numbers come from one.

    In a copy of a commit's tree, where git does not know it, the environment's SOURCE_COMMIT says which one it is.
    """
    machine: dict[str, Any] = {"processor": _processor(), "cores": usable_cores(), "system": platform.platform()}
    if device != "cpu":
        machine["accelerator"] = torch.cuda.get_device_name(device)
    copied = os.environ.get("SOURCE_COMMIT", "")
    return {
        "command": f"python -m {_module()} {shlex.join(map(_as_told, sys.argv[1:]))}".strip(),
        "commit": copied or _git("rev-parse", "HEAD"),
        "is_clean": copied != ""
        or _git("status", "--porcelain", "--untracked-files=no", "--", "src", "bench", ":!bench/results") == "",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": machine,
    }


def is_same_package(results: dict[str, Any], device: str = "cpu") -> bool:
    """Whether a results file was measured with the package as it stands here, and the same versions."""
    here = describe(device)
    return (
        results["is_clean"]
        and here["is_clean"]
        and results["versions"] == here["versions"]
        and results["machine"] == here["machine"]
        and _is_same_source(results["commit"], here["commit"])
    )


def usable_cores() -> int:
    """The cores that this process may run on, which `taskset` can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short_commit(commit: str) -> str:
    """A commit as pages name it."""
    return commit[:7]


def peak_memory_gb() -> float:
    """The most memory that this process held, in GB."""
    # Linux counts kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _as_told(argument: str) -> str:
    """An argument, but of a path of this machine's own only the last part."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _is_same_source(first: str, second: str) -> bool:
    """Whether two commits are one or have the same package, as far as git knows them here."""
    if first == second:
        return True
    sources = {_git("rev-parse", f"{commit}:src") for commit in (first, second)}
    return len(sources) == 1 and _UNKNOWN not in sources


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else _UNKNOWN


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
