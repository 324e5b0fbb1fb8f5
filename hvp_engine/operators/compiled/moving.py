"""Calls whose result lies elsewhere: in a part of a larger tensor, where it would have been copied afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hvp_engine.operators.compiled.tape import Call, View, replaced
from hvp_engine.system.torch_private import is_operation

__all__ = ["moved_to"]


def moved_to(target: View, source: View, calls: Sequence[Call]) -> list[Call] | None:
    """Let a tensor be computed where it is wanted.

    Args:
        target: Where.
        source: The tensor, which must be all of its memory.
        calls: All calls that use that memory.

    Returns:
        The calls, changed; None where they need the memory as it is.
    """
    if (source.shape, source.dtype) != (target.shape, target.dtype) or not source.covers_memory:
        return None
    if any(view.memory is target.memory for call in calls for view in (*call.operands, *call.outputs)):
        return None
    if source.is_dense and target.is_dense:
        return _changed(calls, source, lambda view: _shifted(target, view))
    if any(not is_operation(call.function) for call in calls):
        return None  # our kernels want rows that follow each other
    return _changed(calls, source, lambda view: _restrided(target, source, view))


def _changed(calls: Sequence[Call], source: View, move: Callable[[View], View | None]) -> list[Call] | None:
    """Return calls with the views of a memory moved; None where one cannot be moved."""
    failed = False

    def moved(leaf: Any) -> Any:
        nonlocal failed
        if not isinstance(leaf, View) or leaf.memory is not source.memory:
            return leaf
        there = move(leaf)
        failed = failed or there is None
        return there

    found = [
        Call(call.function, *replaced((call.args, call.kwargs, call.results, call.written), moved)) for call in calls
    ]
    return None if failed else found


def _shifted(target: View, view: View) -> View | None:
    if view.dtype != target.dtype:
        return None
    return replace(view, memory=target.memory, offset=view.offset + target.offset)


def _restrided(target: View, source: View, view: View) -> View | None:
    """Give a view of the whole source, with its dimensions in any order, the strides of the target's dimensions."""
    sizes = {old: (size, new) for size, old, new in zip(source.shape, source.stride, target.stride, strict=True)}
    if view.offset or view.dtype != target.dtype or len(sizes) < len(source.shape):
        return None
    strides = []
    for size, stride in zip(view.shape, view.stride, strict=True):
        known = sizes.get(stride)
        if size == 1:
            strides.append(stride)
        elif known is not None and known[0] == size:
            strides.append(known[1])
        else:
            return None
    return replace(view, memory=target.memory, stride=tuple(strides), offset=target.offset)
