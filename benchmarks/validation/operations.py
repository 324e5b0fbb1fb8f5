"""Checks of the fused operations: forward, backward and second backward, against their `*_ref` in fp64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hvp_engine import ops
from hvp_engine.ops.head.curvature import head_curvature_ref

from .compare import used, using, worst
from .report import Check

PASSES = ("forward", "backward", "second backward")
Function = Callable[..., Tensor]


class Case(NamedTuple):
    """An operation, its reference and fp64 inputs; integer inputs are not differentiated."""

    function: Function
    reference: Function
    inputs: list[Tensor]


def _with(case: str, **options) -> tuple[Function, Function]:
    """Return an operation and its reference with some arguments given."""
    function, reference = getattr(ops, case), getattr(ops, f"{case}_ref")
    return (lambda *x: function(*x, **options)), (lambda *x: reference(*x, **options))


def cases(small: bool) -> dict[str, Case]:
    """Every operation of `hvp_engine.ops` on sizes that fill no tile."""
    torch.manual_seed(0)
    rows, width, classes = (13, 37, 53) if small else (131, 389, 1031)
    length, head = (19, 16) if small else (130, 64)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    def norms(name: str, parameters: int) -> tuple[Function, Function]:
        function, reference = getattr(ops, name), getattr(ops, f"{name}_ref")
        return tuple(lambda x, *p, f=f: f(x, x.shape[-1:], *p, eps=1e-5) for f in (function, reference))

    target = torch.randint(0, classes, (rows,))
    target[1] = -100
    heads = [draw(2, 3, length, head) for _ in range(3)]
    shared = [draw(2, 4, length, head), draw(2, 2, length + 3, head), draw(2, 2, length + 3, head)]
    return {
        "layer_norm": Case(*norms("layer_norm", 2), [draw(rows, width), draw(width), draw(width)]),
        "rms_norm": Case(*norms("rms_norm", 1), [draw(rows, width), draw(width)]),
        "gelu": Case(*_with("gelu"), [3 * draw(rows, width)]),
        "gelu (tanh)": Case(*_with("gelu", approximate="tanh"), [3 * draw(rows, width)]),
        "silu": Case(*_with("silu"), [3 * draw(rows, width)]),
        "swiglu": Case(*_with("swiglu"), [draw(rows, width), draw(rows, width)]),
        "softmax": Case(*_with("softmax"), [3 * draw(rows, width)]),
        "attention (causal)": Case(*_with("attention", is_causal=True), heads),
        "attention (shared keys)": Case(*_with("attention", enable_gqa=True), shared),
        "cross_entropy": Case(*_with("cross_entropy", label_smoothing=0.1), [3 * draw(rows, classes), target]),
        "linear_cross_entropy": Case(
            *_with("linear_cross_entropy"), [draw(rows, width), width**-0.5 * draw(classes, width), target]
        ),
        "embedding": Case(*_with("embedding"), [torch.randint(0, classes, (3, rows)), draw(classes, width)]),
    }


def derivatives(function: Function, inputs: list[Tensor], numbers: list[Tensor]) -> dict[str, list[Tensor]]:
    """Output, gradients, and the gradients of the product of the gradients with `numbers`.

    Args:
        function: What is differentiated.
        inputs: Floating-point ones are.
        numbers: Cotangent of the output, then one of every gradient.
    """
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    leaves = [x for x in inputs if x.requires_grad]
    cotangent = numbers[0].clone().requires_grad_()
    y = function(*inputs)
    first = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
    second = torch.autograd.grad(first, [cotangent, *leaves], numbers[1:], allow_unused=True, materialize_grads=True)
    return dict(zip(PASSES, ([y], [*first], [*second]), strict=True))


def check_operations(
    device: torch.device, backend: str, dtypes: dict[str, torch.dtype], small: bool
) -> Iterator[Check]:
    """Every operation in every dtype; each row is the pass nearest to its limit."""
    for name, case in cases(small).items():
        for label, dtype in dtypes.items():
            yield _check(f"{backend} {name}, {label}", case, device, dtype, backend)
    for label, dtype in dtypes.items():
        yield _check_head_curvature(f"{backend} head curvature, {label}", device, dtype, backend, small)


def _check(name: str, case: Case, device: torch.device, dtype: torch.dtype, backend: str) -> Check:
    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).double() if x.is_floating_point() else x

    def move(tensors: list[Tensor]) -> list[Tensor]:
        return [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in tensors]

    inputs = [rounded(x) for x in case.inputs]
    shapes = [case.reference(*inputs).shape, *(x.shape for x in inputs if x.is_floating_point())]
    generator = torch.Generator().manual_seed(1)
    numbers = [rounded(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    try:
        exact = derivatives(case.reference, inputs, numbers)
        plain = derivatives(case.reference, move(inputs), move(numbers))
        with using(backend):
            found = derivatives(case.function, move(inputs), move(numbers))
    except Exception as error:  # one operation must not hide the others
        return Check(name, float("nan"), 0.0, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    errors = {p: worst(zip(found[p], plain[p], exact[p], strict=True)) for p in PASSES}
    nearest = max(errors, key=lambda p: used(*errors[p]))
    return Check(name, *errors[nearest], note=nearest)


def _check_head_curvature(name: str, device: torch.device, dtype: torch.dtype, backend: str, small: bool) -> Check:
    """Formed in fp32 always; the matrices are stored in the dtype."""
    generator = torch.Generator().manual_seed(0)
    tokens, width, classes = (5, 12, 31) if small else (37, 96, 515)
    hidden, weight, u = (
        torch.randn(shape, generator=generator) for shape in ((tokens, width), (classes, width), (tokens, width))
    )
    exact = torch.einsum("nij,nj->ni", head_curvature_ref(hidden.double(), weight.double()), u.double())
    matrices = head_curvature_ref(hidden.to(device), weight.to(device)).to(dtype).float()
    plain = torch.einsum("nij,nj->ni", matrices, u.to(device))
    with using(backend):
        curvature = ops.form_head_curvature(hidden.to(device), weight.to(device), dtype=dtype)
        found = curvature.apply(u.to(device))
    return Check(name, *worst([(found, plain, exact)], dtype))
