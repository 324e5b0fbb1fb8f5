"""Stage 7: the bytes per second of reorthogonalisation with a basis that fills much of the memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from roofline import REFERENCE, Sizes, passes
from timing import alternate
from validation.compare import using

from hvp_engine.kernels.registry import available_backends
from hvp_engine.kernels.reorthogonalize import reorthogonalize

from .clock import Clock, free, tried
from .runner import Emit

SECONDS = 22.0
ROUNDS = 5
_BASES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SHARE = 0.5  # of the free memory, for a basis in fp32
_LONGEST = 4_000_000
_SMALL = replace(REFERENCE, streams=2, rows=5, columns=4096)


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure a copy, then each basis by each backend."""
    clock = Clock(SECONDS)
    free()
    copied = _copy(emit, device, small)
    sizes = _SMALL if small else replace(REFERENCE, columns=_columns(device))
    for name in _BASES:
        if clock.has(3.0):
            _reorthogonalize(emit, clock, device, sizes, name, copied)


def _reorthogonalize(emit: Emit, clock: Clock, device: torch.device, sizes: Sizes, name: str, copied: float) -> None:
    """Emit the time with one basis by each backend."""
    basis = torch.empty((sizes.streams, sizes.rows, sizes.columns), dtype=_BASES[name], device=device)
    basis.uniform_(-1, 1).mul_(sizes.columns**-0.5)
    vectors = torch.randn(sizes.streams, sizes.columns, device=device)
    moved = sum(work.bytes for work in passes(name, sizes))
    for backend in (each for each in available_backends(device) if each != "torch"):
        what = f"reorthogonalize, {name} basis, {backend}"
        if not clock.has(2.0):
            return
        with tried(emit, what), using(backend):
            call = partial(reorthogonalize, list(basis), list(vectors), [sizes.rows] * sizes.streams)
            taken = alternate({"": call}, ROUNDS, device=device)[""]
            gbs = moved / taken / 1e9
            shape = f"{sizes.streams} x {sizes.rows} x {sizes.columns}"
            emit(what=what, ms=1e3 * taken, gbs=gbs, share_of_copy=gbs / copied, shape=shape)


def _copy(emit: Emit, device: torch.device, small: bool) -> float:
    """Emit and return the gigabytes per second of a copy, read and written ones counted."""
    source = torch.ones((1 << 20) if small else (1 << 29), device=device)
    target = torch.empty_like(source)
    taken = alternate({"": lambda: target.copy_(source)}, ROUNDS, device=device)[""]
    gbs = 2 * source.nbytes / taken / 1e9
    emit(what="copy", gbs=gbs)
    return gbs


def _columns(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return min(_LONGEST, int(_SHARE * free) // (4 * REFERENCE.streams * REFERENCE.rows)) // 4096 * 4096
