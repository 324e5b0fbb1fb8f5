"""A tape with less in it: without calls that nothing reads, without sums after products of matrices, without copies.

Every change keeps the order of the calls that stay.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from hvp_engine.operators.compiled.moving import moved_to
from hvp_engine.operators.compiled.tape import Call, Memory, Tape, View, replaced

__all__ = ["simplified"]

_aten = torch.ops.aten
_ADD, _ADD_TO = _aten.add.Tensor, _aten.add_.Tensor
_BEGUN_FROM = {_aten.mm.default: _aten.addmm.out, _aten.bmm.default: _aten.baddbmm.out}


def simplified(tape: Tape) -> Tape:
    """Return a tape that gives the same product, but for the rounding of sums, by fewer calls."""
    calls = _Sums(_needed(tape.calls, tape.out), {tape.vector, tape.out}).merged()
    return replace(tape, calls=_landed(calls, tape))


def _needed(calls: list[Call], out: Memory) -> list[Call]:
    """Leave out the calls whose results nothing reads."""
    read = {out}
    kept = []
    for call in reversed(calls):
        if any(view.memory in read for view in call.outputs):
            kept.append(call)
            read.update(view.memory for view in call.operands)
    return kept[::-1]


def _uses(calls: list[Call]) -> dict[Memory, list[int]]:
    """Return which calls, by number, use which memory."""
    found: dict[Memory, list[int]] = {}
    for number, call in enumerate(calls):
        for memory in {view.memory for view in (*call.operands, *call.outputs)}:
            found.setdefault(memory, []).append(number)
    return found


class _Sums:
    """Lets products of matrices begin from what they are added to: no memory of their own, and no sum afterwards."""

    def __init__(self, calls: list[Call], given: set[Memory]) -> None:
        self._calls: list[Call | None] = list(calls)
        self._uses = _uses(calls)
        self._given = given

    def merged(self) -> list[Call]:
        """Return the calls with every such sum merged into the product before it."""
        for number, call in enumerate(self._calls):
            if call is not None and call.function in (_ADD, _ADD_TO) and call.kwargs.get("alpha", 1) == 1:
                first, second = call.args[:2]
                if not self._merge(number, first, second) and call.function is _ADD:
                    self._merge(number, second, first)
        return [call for call in self._calls if call is not None]

    def _merge(self, number: int, total: Any, term: Any) -> bool:
        """Let the product that is a term of a sum begin from its total; return whether that was possible."""
        if not (isinstance(total, View) and isinstance(term, View)) or total.memory in self._given:
            return False
        uses = self._uses[total.memory]
        made_at = self._uses[term.memory][0]
        product, call = self._calls[made_at], self._calls[number]
        assert call is not None
        if (
            product is None
            or product.function not in _BEGUN_FROM
            or self._uses[term.memory] != [made_at, number]
            or (total.shape, total.dtype) != (term.shape, term.dtype)
            or uses[0] >= made_at
            or any(made_at <= use < number for use in uses)
        ):
            return False
        start = _as_made(product, total, term)
        if start is None or (call.function is _ADD and not self._may_take(number, call.results[0], total)):
            return False
        if call.function is _ADD:
            assert call.results[0] is not None
            self._give(call.results[0].memory, total.memory)
        self._calls[made_at] = Call(_BEGUN_FROM[product.function], (start, *product.args), {"out": start}, (), (start,))
        self._calls[number] = None
        del self._uses[term.memory]
        self._uses[total.memory] = sorted({*self._uses[total.memory], made_at} - {number})
        return True

    def _may_take(self, number: int, result: View | None, total: View) -> bool:
        """Say whether a sum may lie in the memory of one of its terms, of which nothing else is read any more."""
        return (
            result is not None
            and self._uses[total.memory][-1] == number
            and total.covers_memory
            and result.covers_memory
            and (result.shape, result.stride, result.dtype) == (total.shape, total.stride, total.dtype)
        )

    def _give(self, old: Memory, new: Memory) -> None:
        """Put what lies in one memory into another of the same size."""

        def moved(leaf: Any) -> Any:
            return replace(leaf, memory=new) if isinstance(leaf, View) and leaf.memory is old else leaf

        numbers = self._uses.pop(old)
        for number in numbers:
            call = self._calls[number]
            if call is not None:
                parts = (call.args, call.kwargs, call.results, call.written)
                self._calls[number] = Call(call.function, *replaced(parts, moved))
        self._uses[new] = sorted({*self._uses[new], *numbers})


def _as_made(product: Call, total: View, term: View) -> View | None:
    """Return a total in the order of dimensions in which a product makes its term; None where that is another one."""
    (made,) = product.results
    if made == term:
        return total
    return total.transposed if made == term.transposed else None


def _landed(calls: list[Call], tape: Tape) -> list[Call]:
    """Let what is added to the product's zeros be computed there, or be copied there where it has to move.

    Each number of the product gets at most one term, or everything stays as it is.
    """
    uses, out = _uses(calls), tape.out
    numbers = uses.get(out, [])
    targets = [call.args[0] for call in (calls[n] for n in numbers) if _is_addition_to(call, out)]
    zeros = View(out, tape.dtype, torch.Size([out.bytes // tape.dtype.itemsize]), (1,), 0)
    clear = Call(_aten.zero_.default, (zeros,), {}, written=(zeros,))
    if len(targets) < len(numbers) or not _are_apart(targets):
        return [clear, *calls]
    landed: list[Call | None] = list(calls)
    for number in numbers:
        target, source = calls[number].args[:2]
        landed[number] = Call(_aten.copy_.default, (target, source), {}, written=(target,))
        if not isinstance(source, View) or source.memory is tape.vector or uses[source.memory][-1] != number:
            continue
        users = uses[source.memory][:-1]
        there = [landed[user] for user in users]
        moved = moved_to(target, source, [call for call in there if call is not None])
        if moved is not None:
            landed[number] = None
            for user, call in zip(users, moved, strict=True):
                landed[user] = call
    covered = sum(target.shape.numel() for target in targets)
    kept = [call for call in landed if call is not None]
    return kept if covered == zeros.shape[0] else [clear, *kept]


def _is_addition_to(call: Call, out: Memory) -> bool:
    return (
        call.function is _ADD_TO
        and call.kwargs.get("alpha", 1) == 1
        and call.args[0].memory is out
        and not (isinstance(call.args[1], View) and call.args[1].memory is out)
    )


def _are_apart(targets: list[View]) -> bool:
    """Say whether no two targets have a number in common: each is some columns of all rows of the product."""
    rows = {(target.shape[0], target.stride[0]) if not target.is_dense else None for target in targets}
    if len(rows) > 1:
        return len(targets) < 2
    ends = []
    for target in targets:
        row = target if target.is_dense else replace(target, shape=target.shape[1:], stride=target.stride[1:])
        if not row.is_dense:
            return False
        ends.append((target.offset, target.offset + math.prod(row.shape)))
    return all(end <= begin for (_, end), (begin, _) in pairwise(sorted(ends)))
