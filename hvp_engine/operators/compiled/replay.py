"""A tape on memory of its own, to be run again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvp_engine.operators.compiled.arena import Arena, placed
from hvp_engine.operators.compiled.binding import bound
from hvp_engine.operators.compiled.captured import Captures
from hvp_engine.operators.compiled.tape import Call, Fixed, Memory, Tape, View, leaves_of, replaced
from hvp_engine.system.torch_private import without_torch_functions, write_count

__all__ = ["Replay"]


@dataclass(frozen=True)
class Layout:
    """Where the memory of a tape lies.

    Attributes:
        starts: Where each piece begins.
        size: Bytes of all of them.
        constants: Bytes that the recording computed and a replay keeps.
    """

    starts: dict[Memory, int]
    size: int
    constants: int

    @classmethod
    def of(cls, tape: Tape) -> Layout:
        """Place the memory of a tape; nothing is allocated."""
        starts, size = placed(_spans(tape))
        return cls(starts, size, _constant_bytes(tape.calls))


class Replay:
    """The product of one block of one graph with a number of vectors, as a list of calls.

    Attributes:
        bytes: What it keeps: constants that the recording computed.
        calls: How many calls there are.
    """

    def __init__(self, tape: Tape, layout: Layout, arena: Arena, shape: torch.Size) -> None:
        """Allocate what is missing, and bind the calls.

        Args:
            tape: What to do.
            layout: Its own.
            arena: Where to do it.
            shape: Of the vectors.
        """
        views = _Views(arena.of(layout.size, tape.device), layout.starts)
        numel = shape.numel()
        whole = torch.Size([numel])
        self._vector = views.tensor(View(tape.vector, tape.dtype, whole, (1,), 0)).view(shape)
        self._out = views.tensor(View(tape.out, tape.dtype, whole, (1,), 0)).view(shape)
        self._calls = [_bound(call, views) for call in tape.calls]
        self._launch: Callable[[], object] | None = None  # all of them at once
        self._watched = tape.watched
        self.bytes = layout.constants
        self.calls = len(self._calls)

    @property
    def is_current(self) -> bool:
        """Whether nobody wrote to what the recording read."""
        return all(write_count(tensor) == count for tensor, count in self._watched)

    def run(self, vectors: Tensor, out: Tensor) -> None:
        """Add the products with vectors to ``out``, both of the shape that it was made for."""
        with torch.inference_mode(), without_torch_functions():
            self._vector.copy_(vectors)
            if self._launch is None:
                for call in self._calls:
                    call()
            else:
                self._launch()
            out.add_(self._out)

    def capture(self, captures: Captures) -> None:
        """Launch the calls as one CUDA graph from now on, if they can be captured; they must have run before."""
        with torch.inference_mode(), without_torch_functions():
            self._launch = captures.of(self._calls, self._vector.device)


class _Views:
    """The tensors of a tape, each made once."""

    def __init__(self, base: Tensor, starts: dict[Memory, int]) -> None:
        self._starts = starts
        self._bases = {torch.uint8: base}
        self._made: dict[View, Tensor] = {}

    def tensor(self, leaf: Any) -> Any:
        """Return the tensor that a leaf of a call's arguments stands for, and anything else as it is."""
        if isinstance(leaf, Fixed):
            return leaf.tensor
        if not isinstance(leaf, View):
            return leaf
        if leaf not in self._made:
            begin = self._starts[leaf.memory] // leaf.dtype.itemsize + leaf.offset
            with torch.inference_mode():
                self._made[leaf] = torch.as_strided(self._base(leaf.dtype), leaf.shape, leaf.stride, begin)
        return self._made[leaf]

    def _base(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._bases:
            base = self._bases[torch.uint8]
            self._bases[dtype] = base[: base.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        return self._bases[dtype]


def _bound(call: Call, views: _Views) -> Any:
    outs = tuple(None if result is None else views.tensor(result) for result in call.results)
    return bound(call.function, replaced(call.args, views.tensor), replaced(call.kwargs, views.tensor), outs)


def _spans(tape: Tape) -> dict[Memory, tuple[int, int]]:
    """Return the first and the last call that use each memory; the vector is there before, the product after them."""
    end = len(tape.calls)
    spans: dict[Memory, tuple[int, int]] = {tape.vector: (-1, -1), tape.out: (end, end)}
    for number, call in enumerate(tape.calls):
        for view in (*call.operands, *call.outputs):
            first, last = spans.get(view.memory, (number, number))
            spans[view.memory] = min(first, number), max(last, number)
    return spans


def _constant_bytes(calls: list[Call]) -> int:
    """Return the bytes of constants that a recording made, each counted once."""
    constants = {
        leaf.memory for call in calls for leaf in leaves_of((call.args, call.kwargs)) if isinstance(leaf, Fixed)
    }
    return sum(memory.bytes for memory in constants if not memory.was_there)
