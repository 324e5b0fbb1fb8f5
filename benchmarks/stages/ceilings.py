"""Stage 0: which software and card this is, what the card reaches at most, and what the host's calls cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import results
import torch
from timing import alternate

from hvp_engine.kernels import loader
from hvp_engine.kernels.registry import available_backends

from .runner import Emit

ROUNDS = 9
# Rows, inner and columns: the ceiling, then GPT-2's linear layers and a panel of its head.
PRODUCTS = ((8192, 8192, 8192), (8192, 768, 768), (8192, 768, 3072), (2048, 4096, 768), (768, 8192, 768))
_DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
_CALLS = 1000


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Emit the facts and ceilings."""
    on_card = device.type == "cuda"
    missing = loader.cuda_missing_reason() if on_card else None
    emit(
        what="software",
        **results.machine(device),
        backends=", ".join(available_backends(device)),
        cuda_kernels=missing or "available",
    )
    if on_card:
        query = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,memory.total,memory.used"
        emit(what="state of the card", query=query, found=results.asked_of_driver(query))
    _bandwidth(emit, device, small)
    _products(emit, device, small)
    _host_costs(emit, device)


def _bandwidth(emit: Emit, device: torch.device, small: bool) -> None:
    """Emit the bytes per second of a copy, read and written bytes both counted, and of a sum."""
    source = torch.randn((1 << 20) if small else (1 << 29), device=device)  # 2 GiB
    target = torch.empty_like(source)
    taken = alternate({"copy": lambda: target.copy_(source), "sum": source.sum}, ROUNDS, device=device)
    emit(what="copy", gbs=2 * source.nbytes / taken["copy"] / 1e9, bytes=source.nbytes)
    emit(what="sum", gbs=source.nbytes / taken["sum"] / 1e9)


def _products(emit: Emit, device: torch.device, small: bool) -> None:
    """Emit the rates of matrix products by precision and shape."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for name, dtype in _DTYPES.items():
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            for shape in PRODUCTS:
                rows, inner, columns = (min(size, 128) for size in shape) if small else shape
                left = torch.randn(rows, inner, device=device, dtype=dtype)
                right = torch.randn(inner, columns, device=device, dtype=dtype)
                out = torch.empty(rows, columns, device=device, dtype=dtype)
                taken = _repeated(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), device)
                emit(
                    what=f"product {rows} x {inner} x {columns}, {name}",
                    tflops=2e-12 * rows * inner * columns / taken,
                    us=1e6 * taken,
                )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _repeated(call: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Return the seconds of one of several calls in a row: single launches would measure the host."""

    def calls() -> None:
        for _ in range(times):
            call()

    return alternate({"": calls}, ROUNDS, device=device)[""] / times


class _Twice(torch.autograd.Function):
    """The least that a differentiable operation does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Return 2 x."""
        return x + x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        """Return 2 g."""
        return g + g


def _host_costs(emit: Emit, device: torch.device) -> None:
    """Emit the host's microseconds per call of small operations, which wait for nothing."""
    x = torch.ones(8, device=device)
    y = torch.empty_like(x)
    leaf = x.clone().requires_grad_()
    calls: dict[str, Callable[[], object]] = {
        "torch.add into a buffer": lambda: torch.add(x, x, out=y),
        "torch.add": lambda: x + x,
        "autograd.Function, forward": lambda: _Twice.apply(leaf),
        "autograd.Function, forward and backward": lambda: torch.autograd.grad(_Twice.apply(leaf), leaf, x),
    }
    for name, call in {**calls, **_launches(device)}.items():
        emit(what=f"host, {name}", us=_host_seconds(call, device) * 1e6)


def _launches(device: torch.device) -> dict[str, Callable[[], object]]:
    """Return calls of the engine's own kernels, a small one and the one with the most arguments."""
    if device.type != "cuda" or "triton" not in available_backends(device):
        return {}
    from hvp_engine import ops
    from hvp_engine.ops.attention import attention

    x = torch.randn(16, 64, device=device)
    q, k, v = (torch.randn(1, 1, 64, 64, device=device) for _ in range(3))
    return {"ops.gelu": lambda: ops.gelu(x), "ops.attention": lambda: attention(q, k, v, is_causal=True)}


def _host_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the time until one of many calls returns."""
    best = float("inf")
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        best = min(best, (time.perf_counter() - start) / _CALLS)
    return best
