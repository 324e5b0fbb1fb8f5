"""The line of the user's code in a stack."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import TracebackType

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_EXAMPLES = (str(_PACKAGE / "experiments"), str(_PACKAGE / "losses.py"))
_TORCH = str(Path(torch.__file__).resolve().parent) + "/"
_MODES = (str(_PACKAGE / "diagnosis") + "/", str(_PACKAGE / "ops" / "swap.py"))  # they pass calls on
_FOREIGN = (_TORCH, str(_PACKAGE) + "/", "<")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in')


def users_line_of_text(stack: str) -> str | None:
    """Find the innermost line outside PyTorch and this package in a formatted stack, innermost call last."""
    frames = [(file, int(line)) for file, line in _FRAME.findall(stack)]
    return _innermost(frames[::-1])


def users_line_here() -> str | None:
    """Find the line that called PyTorch, if it is the user's and not this package's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, *_MODES)):
        frame = frame.f_back
    return _innermost([(frame.f_code.co_filename, frame.f_lineno)])


def users_line_of_error(error: BaseException) -> str | None:
    """Find where an exception was raised, as seen from the user's code."""
    frames = []
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return _innermost(frames[::-1])


def _innermost(frames: list[tuple[str, int]]) -> str | None:
    for file, line in frames:
        if file.startswith(_EXAMPLES) or not file.startswith(_FOREIGN):
            return f"{_short(file)}:{line}"
    return None


def _short(file: str) -> str:
    """Write a file relative to the working directory where it lies below it."""
    try:
        return str(Path(file).resolve().relative_to(Path.cwd()))
    except ValueError:
        return file
