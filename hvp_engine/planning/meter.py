"""Counts the floating-point operations and the memory traffic of whatever runs, on meta tensors as on real ones."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from hvp_engine.system.torch_private import DispatchMode, is_view

_GATHERS = ("embedding", "index", "index_select", "gather")  # read as much as they write, not their whole input
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass
class Work:
    """Operations of one part of a job.

    Attributes:
        operations: How often each pair (FLOP, bytes) was executed. Kept apart, and not summed, because each operation
            by itself is bound by arithmetic, by memory or by its launch.
    """

    operations: Counter[tuple[float, float]] = field(default_factory=Counter)

    @property
    def flop(self) -> float:
        """Floating-point operations of matrix products, convolutions and attention."""
        return sum(flop * count for (flop, _), count in self.operations.items())

    @property
    def bytes(self) -> float:
        """Bytes that all operations read and write, each operand once."""
        return sum(size * count for (_, size), count in self.operations.items())

    def add(self, flop: float, size: float) -> None:
        """Count one operation."""
        self.operations[flop, size] += 1


class Meter(DispatchMode):  # type: ignore[misc]
    """Counts every operation below autograd while it is entered.

    FLOP follow the formulas of ``torch.utils.flop_counter``: two per multiply-add of matrix products and convolutions,
    none for element-wise operations. Bytes are the sizes of an operation's inputs and outputs; views and allocations
    are free.

    Attributes:
        work: Where operations are counted now.
        products: FLOP of matrix products by (rows, inner, columns).
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.products: Counter[tuple[int, int, int]] = Counter()

    @contextlib.contextmanager
    def part(self) -> Iterator[Work]:
        """Count into a new :class:`Work` while the context is open."""
        before, self.work = self.work, Work()
        try:
            with self:
                yield self.work
        finally:
            self.work = before

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count it."""
        out = func(*args, **(kwargs or {}))
        name, is_free = _name(func)
        if is_free:
            return out
        formula = flop_registry.get(func.overloadpacket)
        flop = float(formula(*args, **(kwargs or {}), out_val=out)) if formula is not None else 0.0
        written = traffic(_tensors(out))
        size = 2 * written if name in _GATHERS else written + traffic(_tensors((args, (kwargs or {}).values())))
        if size:
            self.work.add(flop, size)
        if flop and name in ("mm", "addmm"):
            left, right = args[-2:]
            self.products[left.shape[0], left.shape[1], right.shape[1]] += int(flop)
        return out


def traffic(tensors: Iterable[Tensor | None]) -> float:
    """Return the bytes of some tensors; an expanded tensor is read from its storage, not from its shape."""
    return float(sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors if t is not None))


@functools.cache
def _name(operation: Any) -> tuple[str, bool]:
    """Name of an operation, and whether it moves no data: a view, an allocation, or a question about a tensor."""
    name = operation.name().removeprefix("aten::").partition(".")[0]
    return name, is_view(operation) or name in _ALLOCATIONS or name.startswith("prim::")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Return the tensors among an operation's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
