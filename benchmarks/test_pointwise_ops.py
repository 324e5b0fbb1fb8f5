"""Normalisation and activations against PyTorch: forward, backward and the second backward of each.

Run as a script for a table of ratios timed alternately, with the bandwidth that each pass reaches:
`python benchmarks/test_pointwise_ops.py`; or under pytest-benchmark for absolute times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine import ops

SIZES = [(1024, 384), (4096, 768), (1024, 3072)]
Pass = Callable[[], object]
Rows = tuple[Tensor, ...]


def _layer_norm_args(size: tuple[int, int], dtype: torch.dtype) -> Rows:
    return (
        torch.randn(size, dtype=dtype),
        torch.randn(size[1], dtype=dtype),
        torch.randn(size[1], dtype=dtype),
    )


def _one(size: tuple[int, int], dtype: torch.dtype) -> Rows:
    return (torch.randn(size, dtype=dtype),)


def _two(size: tuple[int, int], dtype: torch.dtype) -> Rows:
    return torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)


# name: arguments, ours, PyTorch's, arrays of the input's size moved by forward, backward, second backward
CASES: dict[str, tuple[Callable[..., Rows], Callable[..., Tensor], Callable[..., Tensor], tuple[int, int, int]]] = {
    "layer_norm": (
        _layer_norm_args,
        lambda x, w, b: ops.layer_norm(x, x.shape[-1:], w, b),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        (2, 3, 5),
    ),
    "rms_norm": (
        lambda size, dtype: _layer_norm_args(size, dtype)[:2],
        lambda x, w: ops.rms_norm(x, x.shape[-1:], w, 1e-6),
        lambda x, w: F.rms_norm(x, x.shape[-1:], w, 1e-6),
        (2, 3, 5),
    ),
    "gelu": (_one, ops.gelu, F.gelu, (2, 3, 5)),
    "gelu_tanh": (
        _one,
        lambda x: ops.gelu(x, "tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        (2, 3, 5),
    ),
    "silu": (_one, ops.silu, F.silu, (2, 3, 5)),
    "swiglu": (_two, ops.swiglu, lambda a, b: F.silu(a) * b, (3, 5, 8)),
}


def passes(function: Callable[..., Tensor], args: Rows) -> tuple[Pass, Pass, Pass]:
    """Forward, backward to everything, second backward for a cotangent of the first input's gradient."""
    leaves = tuple(arg.detach().clone().requires_grad_() for arg in args)
    g = torch.randn_like(leaves[0]).requires_grad_()
    u = torch.randn_like(leaves[0])
    y = function(*leaves)
    dx = torch.autograd.grad(y, leaves[0], g, create_graph=True)[0]
    data = [leaf for leaf in leaves if leaf.shape == leaves[0].shape]

    def first() -> object:
        return torch.autograd.grad(y, leaves, g.detach(), retain_graph=True)

    def second() -> object:
        return torch.autograd.grad(dx, [g, *data], u, retain_graph=True)

    return (lambda: function(*leaves)), first, second


def alternate(ours: Pass, theirs: Pass, rounds: int = 15) -> tuple[float, float]:
    """Median seconds of both, timed in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for timings, run in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            run()
            timings.append(time.perf_counter() - start)
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def copy_bandwidth(elements: int) -> float:
    """Bytes per second that torch reaches when it adds two arrays of this size into a third."""
    a, b, c = (torch.randn(elements) for _ in range(3))
    seconds, _ = alternate(lambda: torch.add(a, b, out=c), lambda: None)
    return 12 * elements / seconds


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stage", ["forward", "backward", "second_backward"])
@pytest.mark.parametrize("library", ["hvp_engine", "torch"])
def test_pass_of_a_pointwise_operation(
    benchmark: Callable[[Pass], object], name: str, stage: str, library: str
) -> None:
    """Times one pass of one operation."""
    make, ours, theirs, _ = CASES[name]
    run = passes(ours if library == "hvp_engine" else theirs, make((1024, 768), torch.float32))
    benchmark(run[["forward", "backward", "second_backward"].index(stage)])


def main() -> None:
    """Prints one line per operation, size and pass."""
    torch.set_num_threads(2)
    print("operation   size          pass        ours us  torch us  ratio   GB/s  add GB/s")
    for size in SIZES:
        bandwidth = copy_bandwidth(size[0] * size[1])
        for name, (make, ours, theirs, arrays) in CASES.items():
            args = make(size, torch.float32)
            for label, a, b, moved in zip(
                ("forward", "backward", "second"),
                passes(ours, args),
                passes(theirs, args),
                arrays,
                strict=True,
            ):
                mine, other = alternate(a, b)
                rate = 4 * moved * size[0] * size[1] / mine
                print(
                    f"{name:<12}{size!s:<14}{label:<10}{mine * 1e6:>9.0f}{other * 1e6:>10.0f}"
                    f"{other / mine:>7.2f}{rate / 1e9:>7.1f}{bandwidth / 1e9:>10.1f}"
                )


if __name__ == "__main__":
    main()
