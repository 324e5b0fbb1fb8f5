"""Normalisations and activations beside PyTorch's own: inputs, functions, and the traffic of each pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import alternate
from torch import Tensor

from hvp_engine import ops

PASSES = ("forward", "backward", "second_backward")
CPU = torch.device("cpu")
Pass = Callable[[], object]
Rows = tuple[Tensor, ...]


def _layer_norm_args(size: tuple[int, int], device: torch.device) -> Rows:
    return (
        torch.randn(size, device=device),
        torch.randn(size[1], device=device),
        torch.randn(size[1], device=device),
    )


def _one(size: tuple[int, int], device: torch.device) -> Rows:
    return (torch.randn(size, device=device),)


def _two(size: tuple[int, int], device: torch.device) -> Rows:
    return torch.randn(size, device=device), torch.randn(size, device=device)


# name: arguments, ours, PyTorch's, arrays of the input's size moved by forward, backward, second backward
CASES: dict[str, tuple[Callable[..., Rows], Callable[..., Tensor], Callable[..., Tensor], tuple[int, int, int]]] = {
    "layer_norm": (
        _layer_norm_args,
        lambda x, w, b: ops.layer_norm(x, x.shape[-1:], w, b),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        (2, 3, 5),
    ),
    "rms_norm": (
        lambda size, device: _layer_norm_args(size, device)[:2],
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
    y = function(*leaves)
    g = torch.randn_like(y).requires_grad_()
    dx = torch.autograd.grad(y, leaves[0], g, create_graph=True)[0]
    u = torch.randn_like(dx)
    data = [leaf for leaf in leaves if leaf.shape == leaves[0].shape]

    def first() -> object:
        return torch.autograd.grad(y, leaves, g.detach(), retain_graph=True)

    def second() -> object:
        return torch.autograd.grad(dx, [g, *data], u, retain_graph=True)

    return (lambda: function(*leaves)), first, second


def copy_bandwidth(elements: int, device: torch.device = CPU) -> float:
    """Measure the bytes per second that torch reaches when it adds two arrays of this size into a third."""
    a, b, c = (torch.randn(elements, device=device) for _ in range(3))
    return 12 * elements / alternate({"add": lambda: torch.add(a, b, out=c)}, 13, device=device)["add"]
