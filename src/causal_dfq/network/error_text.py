"""What an error of torch or of the user's code tells: its first sentence and the user's line."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import torch

_QUOTED_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_INSTALLED = ("site-packages", "dist-packages")


def first_line(error: BaseException) -> str:
    """The first line of the message that is not empty, without its full stop; else the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def failing_line(error: BaseException) -> str:
    """Where in the user's code an error arose: "net.py, line 3", or "" where nothing tells.

    The innermost frame outside of torch, of Python and of this package; where the traceback has none, the
    last one that the message of the error or of its cause quotes.
    """
    frames = _frames_of_traceback(error) or [*_quoted_frames(error.__cause__), *_quoted_frames(error)]
    return f"{frames[-1][0]}, line {frames[-1][1]}" if frames else ""


def _frames_of_traceback(error: BaseException) -> list[tuple[str, int]]:
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return [frame for frame in frames if _is_user_code(frame[0])]


def _quoted_frames(error: BaseException | None) -> list[tuple[str, int]]:
    return [(name, int(line)) for name, line in _QUOTED_FRAME.findall(str(error or "")) if _is_user_code(name)]


def _is_user_code(filename: str) -> bool:
    # Code made at run time has names like "<string>" or "<eval_with_key>.7".
    if filename.startswith("<"):
        return False
    path = Path(filename)
    own = Path(__file__).parent
    if path.is_relative_to(Path(torch.__file__).parent) or path.is_relative_to(own):
        return False
    standard_library = Path(sysconfig.get_path("stdlib"))
    # Without a virtual environment, installed packages lie inside of the standard library's folder.
    return not path.is_relative_to(standard_library) or any(
        part in _INSTALLED for part in path.relative_to(standard_library).parts
    )
