"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from causal_dfq.errors import OutputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary path beside `path`, then renames it.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    except Exception as error:
        # safetensors reports a full disk in an exception of its own.
        if "No space left" in str(error):
            raise output_error(path, OSError(errno.ENOSPC, "No space left on device")) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def output_error(path: Path, error: OSError) -> OutputError:
    """The sentence for a failed write."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"no disk space left to write {path}; free some, then go on with --resume")
    return OutputError(f"cannot write {path}: {error.strerror or error}")
