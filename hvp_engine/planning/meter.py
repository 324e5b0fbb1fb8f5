"""Counts operations, memory traffic and living memory of whatever runs, on meta tensors as on real ones."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from hvp_engine.system.torch_private import DispatchMode, is_view, storage_key

_GATHERS = ("embedding", "index", "index_select", "gather")  # read as much as they write, not their whole input
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


Family = Literal[
    "linear",
    "elementwise",
    "activation",
    "norm",
    "loss",
    "head",
    "attention forward",
    "attention backward",
    "attention second",
]
"""Kinds of operations that reach like shares of a device's ceilings."""


class Operation(NamedTuple):
    """One operation.

    Attributes:
        flop: Floating-point operations.
        bytes: Bytes read and written.
        family: What kind it is.
        launches: How many kernels it starts.
    """

    flop: float
    bytes: float
    family: Family
    launches: int = 1


@dataclass
class Work:
    """Operations of one part of a job.

    Attributes:
        operations: How often each operation was executed. Kept apart, and not summed, because each operation by itself
            is bound by arithmetic, by memory or by its launch.
        peak: Bytes of new tensors alive at once at most, above those that were alive when it began.
    """

    operations: Counter[Operation] = field(default_factory=Counter)
    peak: int = 0

    @property
    def flop(self) -> float:
        """Floating-point operations of matrix products, convolutions and attention."""
        return sum(operation.flop * count for operation, count in self.operations.items())

    @property
    def bytes(self) -> float:
        """Bytes that all operations read and write, each operand once."""
        return sum(operation.bytes * count for operation, count in self.operations.items())

    def add(self, operation: Operation) -> None:
        """Count one operation."""
        self.operations[operation] += 1


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
        self._alive: dict[Hashable, weakref.ref[torch.UntypedStorage]] = {}
        self._living = self._most = 0
        self._aside: Aside | None = None

    @contextlib.contextmanager
    def part(self) -> Iterator[Work]:
        """Count into a new :class:`Work` while the context is open."""
        before, self.work = self.work, Work()
        began = self._most = self._living
        try:
            with self:
                yield self.work
        finally:
            self.work.peak = self._most - began
            self.work = before

    @contextlib.contextmanager
    def aside(self) -> Iterator[Aside]:
        """Count apart from everything else while the context is open; the meter is entered already."""
        before, most = self.work, self._most
        self._aside = Aside(self)
        try:
            yield self._aside
        finally:
            self._aside, self.work, self._most = None, before, most

    def reach(self, peak: int) -> None:
        """Count so many bytes of new tensors as alive beside those that are, for a moment."""
        self._most = max(self._most, self._living + peak)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count it."""
        if self._aside is not None and self._aside.counting and torch.is_grad_enabled():
            self._aside.differentiated = True
        out = func(*args, **(kwargs or {}))
        name, is_free, is_new = _name(func)
        if is_new:
            self._see(out)
        if is_free:
            return out
        formula = flop_registry.get(func.overloadpacket)
        flop = float(formula(*args, **(kwargs or {}), out_val=out)) if formula is not None else 0.0
        written = traffic(_tensors(out))
        size = 2 * written if name in _GATHERS else written + traffic(_tensors((args, (kwargs or {}).values())))
        if size:
            self.work.add(Operation(flop, size, "linear" if flop else "elementwise"))
        if flop and name in ("mm", "addmm"):
            left, right = args[-2:]
            self.products[left.shape[0], left.shape[1], right.shape[1]] += int(flop)
        return out

    def _see(self, made: Any) -> None:
        """Count the memory of new tensors until it is given back."""
        for tensor in _tensors(made):
            if tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            key, size = storage_key(storage), storage.nbytes()
            if key not in self._alive:
                self._alive[key] = weakref.ref(storage, functools.partial(self._forget, key, size))
                self._living += size
                self._most = max(self._most, self._living)

    def _forget(self, key: Hashable, size: int, _: Any) -> None:
        del self._alive[key]
        self._living -= size


class Aside:
    """What a meter counts apart from everything else.

    Attributes:
        counting: Whether it has begun, and not ended.
        differentiated: Whether an operation was run to be differentiated, as in a forward pass.
    """

    def __init__(self, meter: Meter) -> None:
        self.counting = self.differentiated = False
        self._meter = meter
        self._before: set[Hashable] = set()
        self._began = 0

    def begin(self) -> None:
        """Count from here."""
        meter = self._meter
        meter.work = Work()
        self.counting = True
        self._before = set(meter._alive)
        self._began = meter._most = meter._living

    def end(self) -> Work:
        """Return what was counted so far."""
        work = self._meter.work
        self.counting = False
        return Work(Counter(work.operations), self._meter._most - self._began)

    def is_new(self, key: Hashable) -> bool:
        """Say whether memory was taken since the beginning, by its key."""
        return key not in self._before and key in self._meter._alive


def traffic(tensors: Iterable[Tensor | None]) -> float:
    """Return the bytes of some tensors; an expanded tensor is read from its storage, not from its shape."""
    return float(sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors if t is not None))


@functools.cache
def _name(operation: Any) -> tuple[str, bool, bool]:
    """Name of an operation, whether it moves no data (a view, allocation, question), and whether it makes tensors."""
    name = operation.name().removeprefix("aten::").partition(".")[0]
    views = is_view(operation)
    return name, views or name in _ALLOCATIONS or name.startswith("prim::"), not views and not name.endswith("_")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Return the tensors among an operation's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
