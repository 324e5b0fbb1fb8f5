"""Runs Triton kernels on CPU tensors, stricter than Triton's own interpreter.

Inside `interpreted()` every launch of a ``triton.jit`` function is interpreted; outside nothing has changed, so that
one process can also compile the same kernels ahead of time. What Triton's interpreter would let pass is an error here:

- a load or store outside the tensors of the launch, and those made known by `Guard.reach`;
- two programs of a launch, or two lanes of one store, that write to one address, and a program that reads what another
  one writes: on a GPU the result would depend on their order (atomic operations are exempt);
- arithmetic or a sum on bfloat16, which the interpreter does on the raw bits.

Two more differences from a GPU are taken away: lanes that a masked load leaves undefined hold NaN or a large integer
instead of zeros, and conversions to bfloat16 round to nearest instead of truncating.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as own
from triton.runtime.jit import JITFunction

_POISON = {"f": np.nan, "u": 0xFFFF, "i": 0x55, "b": True}  # 0xFFFF is a NaN of bfloat16


class MemoryFault(Exception):
    """A kernel touched memory in a way that is undefined on a GPU."""


class Guard:
    """Checks every memory access of the launches made while it is in place."""

    def __init__(self) -> None:
        self._known: list[torch.Tensor] = []
        self._spans = np.empty((0, 2), dtype=np.int64)
        self._accesses: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def reach(self, *tensors: torch.Tensor) -> None:
        """Allows access to tensors that launches reach through a table of addresses."""
        self._known.extend(tensors)

    def start_launch(self, arguments: list[Any]) -> None:
        tensors = [t for t in _flat(arguments) if isinstance(t, torch.Tensor)] + self._known
        self._spans = _merged([_span(t) for t in tensors if t.numel()])
        self._accesses = {"load": [], "store": []}

    def check(self, kind: str, pointers: Any, mask: Any) -> None:
        """Refuses active lanes outside all tensors, and remembers what the others touch."""
        addresses = np.asarray(pointers.data).reshape(-1).astype(np.int64)
        active = np.broadcast_to(np.asarray(mask.data, dtype=bool).reshape(-1), addresses.shape)
        addresses = addresses[active]
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        at = np.searchsorted(self._spans[:, 0], addresses, side="right") - 1
        inside = (at >= 0) & (addresses + width <= self._spans[at, 1] if len(self._spans) else False)
        if not inside.all():
            raise MemoryFault(f"{kind}: {np.sum(~inside)} of {inside.size} active lanes are outside every tensor")
        if kind == "store" and np.unique(addresses).size != addresses.size:
            raise MemoryFault("store: two lanes write to one address")
        if kind in self._accesses:
            x, y, z = own.interpreter_builder.grid_idx
            program = x + (y << 20) + (z << 40)
            self._accesses[kind].append((addresses, np.full(addresses.shape, program)))

    def finish_launch(self) -> None:
        """Refuses a launch whose programs depend on each other."""
        stored, writers = _joined(self._accesses["store"])
        order = np.argsort(stored, kind="stable")
        stored, writers = stored[order], writers[order]
        if np.any((stored[1:] == stored[:-1]) & (writers[1:] != writers[:-1])):
            raise MemoryFault("race: two programs store to one address")
        loaded, readers = _joined(self._accesses["load"])
        at = np.minimum(np.searchsorted(stored, loaded), max(stored.size - 1, 0))
        if stored.size and np.any((stored[at] == loaded) & (writers[at] != readers)):
            raise MemoryFault("race: a program loads what another one stores")


def _flat(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _flat(argument)
        else:
            yield argument


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def _merged(spans: Iterable[tuple[int, int]]) -> np.ndarray:
    """Address ranges in order, those that overlap made one."""
    merged: list[list[int]] = []
    for low, high in sorted(spans):
        if merged and low < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    return np.array(merged, dtype=np.int64).reshape(-1, 2)


def _joined(accesses: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    empty = np.empty(0, dtype=np.int64)
    return tuple(np.concatenate([empty, *(access[part] for access in accesses)]) for part in (0, 1))


def _refuse_bfloat16(*handles: Any) -> None:
    if any(handle.get_element_ty() == tl.bfloat16 for handle in handles):
        raise TypeError("arithmetic on bfloat16: load, cast to float32 at once, compute, and cast at the store")


def _widened(handle: Any) -> Any:
    """A bfloat16 handle in float32, exactly."""
    if handle.get_element_ty() != tl.bfloat16:
        return handle
    return own.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(handle: Any) -> Any:
    values = torch.from_numpy(np.array(handle.data, dtype=np.float32)).bfloat16()
    return own.TensorHandle(values.view(torch.uint16).numpy(), tl.bfloat16)


def _as_mask(handle: Any) -> Any:
    """A mask as an array of booleans, which Triton 3.9 asks for and its own ``&`` of two masks does not always give."""
    return own.TensorHandle(np.asarray(handle.data, dtype=bool), tl.int1)


def _builder_methods(guard: Guard) -> dict[str, Any]:
    """The interpreter's operations with checks around them."""
    builder = own.InterpreterBuilder

    def create_masked_load(self, ptrs, mask, other, *rest, load=builder.create_masked_load):
        guard.check("load", ptrs, mask)
        if other is None:
            dtype = own._get_np_dtype(ptrs.get_element_ty())
            other = own.TensorHandle(np.full(ptrs.data.shape, _POISON[dtype.kind]).astype(dtype), ptrs.get_element_ty())
        return load(self, ptrs, _as_mask(mask), other, *rest)

    def create_masked_store(self, ptrs, value, mask, *rest, store=builder.create_masked_store):
        guard.check("store", ptrs, mask)
        return store(self, ptrs, value, _as_mask(mask), *rest)

    def create_atomic_rmw(self, op, ptr, val, mask, *rest, update=builder.create_atomic_rmw):
        guard.check("atomic", ptr, mask)
        return update(self, op, ptr, val, mask, *rest)

    def create_atomic_cas(self, ptr, *rest, swap=builder.create_atomic_cas):
        guard.check("atomic", ptr, own.TensorHandle(np.ones_like(ptr.data, dtype=bool), tl.int1))
        return swap(self, ptr, *rest)

    def cast_impl(self, src, dst_type, cast=builder.cast_impl):
        source, target = src.dtype.scalar, dst_type.scalar
        if target == tl.bfloat16 and source != tl.bfloat16:
            return _rounded(src)
        return cast(self, _widened(src) if target != tl.bfloat16 else src, dst_type)

    def create_fp_to_fp(self, src, dst_type, mode, convert=builder.create_fp_to_fp):
        return _rounded(src) if dst_type.scalar == tl.bfloat16 else convert(self, src, dst_type, mode)

    def binary_op(self, lhs, rhs, op, compute=builder.binary_op):
        _refuse_bfloat16(lhs, rhs)
        return compute(self, lhs, rhs, op)

    def unary_op(self, arg, op, compute=builder.unary_op):
        _refuse_bfloat16(arg)
        return compute(self, arg, op)

    def create_dot(self, a, b, *rest, dot=builder.create_dot):
        return dot(self, _widened(a), _widened(b), *rest)

    return {name: value for name, value in locals().items() if name not in ("guard", "builder")}


def _reduce(self, tensors, apply=own.ReduceOps.apply_impl):
    _refuse_bfloat16(*(t.handle for t in tensors))
    return apply(self, tensors)


def _launch(kernel, *args, grid, warmup, **kwargs):
    return own.InterpretedFunction(kernel.fn).run(*args, grid=grid, warmup=warmup, **kwargs)


def _call(kernel, *args, **kwargs):
    return own.InterpretedFunction(kernel.fn).rewrite()(*args, **kwargs)


@contextmanager
def _interpreted_language() -> Iterator[None]:
    """Makes the language act on arrays inside. Its own attributes are put back here: Triton before 3.6 leaves them."""
    owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    compiled = [dict(vars(owner)) for owner in owners]
    own._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    # An array of one number as a loop's bound: NumPy 2.4 refuses the conversion of Triton before 3.7.
    tl.tensor.__index__ = lambda self: int(self.handle.data.item())
    try:
        yield
    finally:
        for owner, attributes in zip(owners, compiled, strict=True):
            for name, value in dict(vars(owner)).items():
                if name not in attributes:
                    delattr(owner, name)
                elif value is not attributes[name]:
                    setattr(owner, name, attributes[name])


@contextmanager
def interpreted(guard: Guard | None = None) -> Iterator[Guard]:
    """Interprets all launches inside; yields the guard that watches them."""
    guard = Guard() if guard is None else guard

    def execute(self, *args, run=own.GridExecutor.__call__, **kwargs):
        guard.start_launch([*args, *kwargs.values()])
        run(self, *args, **kwargs)
        guard.finish_launch()

    with ExitStack() as stack:
        # The language is patched once, not at each launch and each call of a device function, which is slow.
        stack.enter_context(_interpreted_language())
        stack.enter_context(np.errstate(all="ignore"))
        for name, method in _builder_methods(guard).items():
            stack.enter_context(patch.object(own.InterpreterBuilder, name, method))
        stack.enter_context(patch.object(own, "_patch_lang", lambda fn: SimpleNamespace(restore=lambda: None)))
        stack.enter_context(patch.object(own.ReduceOps, "apply_impl", _reduce))
        stack.enter_context(patch.object(own.GridExecutor, "__call__", execute))
        stack.enter_context(patch.object(JITFunction, "run", _launch))
        stack.enter_context(patch.object(JITFunction, "__call__", _call))
        yield guard
