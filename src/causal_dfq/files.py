"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from causal_dfq.errors import OutputError

_MARK = ".partial"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary path beside `path`, then renames it; of a link, what it points to is replaced.

    Raises:
        OutputError: the disk is full, the folder cannot be written, or there is something else than a file.
    """
    try:
        path = path.resolve()
        is_replaceable = path.name != "" and (path.is_file() or not path.exists())
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    if not is_replaceable:
        raise OutputError(f"cannot write {path}: it is no file; give the name of one")
    temporary = path.with_name(f".{path.name}{_MARK}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def exists_as_file(path: Path) -> bool:
    """Whether there is a file of that name that can be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_partial(path: Path) -> bool:
    """Whether this is what a kill left of a write; the next write replaces it."""
    return path.name.startswith(".") and _MARK in path.name


def check_target(path: Path, force: bool) -> None:
    """Refuses what a file cannot be written to, before any work is done for it.

    Raises:
        OutputError: it exists and `force` is not set, is a folder or a device, or lies in no folder.
    """
    try:
        is_folder, exists, has_parent = path.is_dir(), path.exists(), path.absolute().parent.is_dir()
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    if is_folder or (exists and not path.is_file()):
        what = "a folder" if is_folder else "no file that can be replaced"
        raise OutputError(f"{path} is {what}: give the name of a file")
    if not has_parent:
        raise OutputError(f"{path.absolute().parent} does not exist: make it, or give another place for {path.name}")
    if exists and not force:
        raise OutputError(f"{path} exists: give another name, or --force to replace it")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a .safetensors file atomically.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    # safetensors' own writer leaves a file under a random name when it is killed.
    content = save(tensors, metadata)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def detached_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a .safetensors file wants them: on the CPU, contiguous, none sharing memory with another one.

    What already lies so is not copied: write it before it changes.
    """
    detached: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        detached[name] = value.clone() if place in known else value
        known.add(place)
    return detached


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def output_error(path: Path, error: OSError) -> OutputError:
    """The sentence for a failed write."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"no disk space left to write {path}; free some; an interrupted run goes on with --resume")
    return OutputError(f"cannot write {path}: {error.strerror or error}")
