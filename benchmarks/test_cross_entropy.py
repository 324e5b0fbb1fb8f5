"""Losses over a large vocabulary: against PyTorch, the machine's memory traffic, and its matrix products.

Run with `pytest -s benchmarks/test_cross_entropy.py`; medians of calls timed alternately in one run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import CPU, alternate
from torch.autograd import grad

from hvp_engine.kernels.packed_symmetric import packed_size
from hvp_engine.ops.cross_entropy import cross_entropy, cross_entropy_ref
from hvp_engine.ops.head.curvature import HeadCurvature, form_head_curvature
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

TOKENS, HIDDEN, CLASSES = 1024, 384, 50304


def medians(calls: dict[str, Callable[[], object]], rounds: int = 3, device: torch.device = CPU) -> dict[str, float]:
    """Measure the milliseconds per call, timed alternately after one call to warm up."""
    return {name: round(1e3 * taken, 4) for name, taken in alternate(calls, rounds, device=device).items()}


def report(benchmark: Any, numbers: dict[str, float]) -> None:
    """Keep the numbers with the benchmark's result; pytest-benchmark needs something to time."""
    benchmark.extra_info.update(numbers)
    print(numbers)
    benchmark.pedantic(lambda: None)


def test_cross_entropy_passes(benchmark: Any, device: torch.device) -> None:
    """Each pass against PyTorch's and against plain reads and writes of as many arrays."""
    torch.manual_seed(0)
    logits, tangent = torch.randn(2, TOKENS, CLASSES, device=device)
    out, target = torch.empty_like(logits), torch.randint(0, CLASSES, (TOKENS,), device=device)
    calls = {"read 1": logits.sum, "read 1 write 1": lambda: out.copy_(logits)}
    calls["read 2 write 1"] = lambda: torch.add(logits, tangent, out=out)
    for name, function in (("fused", cross_entropy), ("plain", cross_entropy_ref)):
        x = logits.clone().requires_grad_()
        loss = function(x, target)
        (gradient,) = grad(loss, x, create_graph=True)
        calls[f"{name} forward"] = lambda f=function: f(logits, target)
        calls[f"{name} backward"] = lambda y=loss, x=x: grad(y, x, retain_graph=True)
        calls[f"{name} second"] = lambda g=gradient, x=x: grad(g, x, tangent, retain_graph=True)
    numbers = medians(calls, device=device)
    for part in ("forward", "backward", "second"):
        numbers[f"plain / fused {part}"] = round(numbers[f"plain {part}"] / numbers[f"fused {part}"], 2)
    report(benchmark, numbers)


def test_second_backward_of_the_head(benchmark: Any, device: torch.device) -> None:
    """Second backward to the hidden states: every route, and two of its products alone."""
    torch.manual_seed(0)
    hidden, tangent = torch.randn(2, TOKENS, HIDDEN, device=device)
    weight = (0.02 * torch.randn(CLASSES, HIDDEN, device=device)).requires_grad_()
    target, out = torch.randint(0, CLASSES, (TOKENS,), device=device), torch.empty(TOKENS, CLASSES, device=device)
    matrices = HeadCurvature(
        torch.zeros(TOKENS, packed_size(HIDDEN), device=device), HIDDEN, torch.zeros(TOKENS, device=device)
    )
    calls = {
        "two products": lambda: (torch.mm(hidden, weight.detach().t(), out=out), out @ weight.detach()),
        "head curvature": lambda: matrices.apply(tangent),
    }
    variants = {
        "plain": (linear_cross_entropy_ref, {}),
        "fused": (linear_cross_entropy, {}),
        "kept logits": (linear_cross_entropy, {"keep_logits": True}),
    }
    for name, (function, options) in variants.items():
        x = hidden.clone().requires_grad_()
        (gradient,) = grad(function(x, weight, target, **options), x, create_graph=True)
        calls[name] = lambda g=gradient, x=x: grad(g, x, tangent, retain_graph=True)
    report(benchmark, medians(calls, device=device))


def test_applying_head_curvature(benchmark: Any, device: torch.device) -> None:
    """One and four vectors per token against a plain read of the matrices."""
    numbers = {}
    for dtype in (torch.float32, torch.bfloat16):
        packed = torch.randn(TOKENS, packed_size(HIDDEN), device=device).to(dtype)
        curvature = HeadCurvature(packed, HIDDEN, torch.zeros(TOKENS, device=device))
        u = torch.randn(4, TOKENS, HIDDEN, device=device)
        raw = packed.view(torch.int16).view(torch.float32) if dtype == torch.bfloat16 else packed
        calls = {
            f"{dtype} read": raw.sum,
            f"{dtype} apply 1": lambda c=curvature, u=u: c.apply(u[:1]),
            f"{dtype} apply 4": lambda c=curvature, u=u: c.apply(u),
        }
        numbers |= medians(calls, device=device)
    report(benchmark, numbers)


def test_forming_head_curvature(benchmark: Any, device: torch.device) -> None:
    """Half the hidden size, an eighth of the classes: seconds instead of minutes, same kernels and panels."""
    hidden = torch.randn(TOKENS, HIDDEN // 2, device=device)
    weight = 0.02 * torch.randn(CLASSES // 8, HIDDEN // 2, device=device)
    left, right = torch.randn(TOKENS, 4096, device=device), torch.randn(4096, 1024, device=device)
    numbers = medians(
        {"form": lambda: form_head_curvature(hidden, weight), "product": lambda: left @ right}, device=device
    )
    work = 2e-6 * TOKENS * CLASSES // 8 * packed_size(HIDDEN // 2)
    numbers["form GFLOP/s"] = round(work / numbers["form"], 1)
    numbers["product GFLOP/s"] = round(2e-6 * TOKENS * 4096 * 1024 / numbers["product"], 1)
    report(benchmark, numbers)
