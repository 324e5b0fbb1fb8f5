"""Where a forward pass takes a number out of autograd's sight: detach(), .data, .item(), no_grad.

What is computed from such a number counts as a constant in every derivative. Where it does not change the loss (a
metric, a maximum that is subtracted) nothing is wrong; where it does, gradient and Hessian are not those of the loss,
and neither the graph nor any exception tells. So the places are found here; finite differences clear them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_OURS = str(Path(__file__).parents[1])
_WATCHING = (__file__, str(Path(__file__).with_name("forward_guard.py")))
_CUTTING = frozenset(
    (
        Tensor.detach,
        torch.detach,
        Tensor.data.__get__,  # type: ignore[attr-defined]
        Tensor.item,
        Tensor.tolist,
        Tensor.__float__,
    )
)
_IN_PLACE = frozenset((Tensor.detach_, torch.detach_))  # whose argument has forgotten by now what it depended on
_EMPTY = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")  # take the shape, no more
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Cut:
    """A line of code that cuts a value out of the graph.

    Attributes:
        file: Its file.
        line: Its number there.
    """

    file: str
    line: int

    def __str__(self) -> str:
        """Show it as tracebacks do."""
        return f"{self.file}:{self.line}"


def cut_by(func: Callable[..., Any], args: Iterable[Any], result: Any, *, within_no_grad: bool) -> Cut | None:
    """Say where a call of a forward pass cuts a value that depends on the parameters out of the graph.

    Args:
        func: What was called.
        args: Its arguments.
        result: What it gave.
        within_no_grad: Whether gradients were on around the forward pass, and are off now.

    Returns:
        The place; None where nothing is cut, or by a custom autograd function, whose graph tells of it.
    """
    if func in _IN_PLACE:
        return _place()
    if func not in _CUTTING:
        if not within_no_grad or not isinstance(result, Tensor) or not result.is_floating_point():
            return None
        name = getattr(func, "__name__", "")
        if name in _EMPTY or name.startswith("new_"):
            return None
    return _place() if any(map(_depends, args)) else None


def _depends(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_depends, value))
    return isinstance(value, Tensor) and value.requires_grad


def _place() -> Cut | None:
    """Find the line of the model or the loss that made the present call; None in a custom function or one of ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _WATCHING:
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_OURS):
        return None
    cut = Cut(frame.f_code.co_filename, frame.f_lineno)
    while frame is not None:
        if frame.f_code is _APPLY:
            return None
        frame = frame.f_back
    return cut
