"""Element-wise activations: value, first and second derivative from one read of the input each."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.records import Operand
from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import ELEMENTS, launch, load_wide, variant

__all__ = ["resource_cases", "run_elementwise"]

# Activations as csrc/include/hvp/activations.h numbers them; the third is silu.
_GELU = tl.constexpr(0)
_GELU_TANH = tl.constexpr(1)

_BLOCK = 1024


@triton.jit
def _sigmoid_parts(z):
    """Return s = sigmoid(z), s (1 - s) and 1 - 2 s from one exponential that cannot overflow."""
    e = tl.exp(-tl.abs(z))
    inverse = 1.0 / (1.0 + e)
    flip = (1.0 - e) * inverse
    return tl.where(z < 0, e * inverse, inverse), e * inverse * inverse, tl.where(z < 0, flip, -flip)


@triton.jit
def _silu(x):
    s, ds, flip = _sigmoid_parts(x)
    return x * s, s + x * ds, ds * (2.0 + x * flip)


@triton.jit
def _gelu(x):
    cdf = 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440))
    # Far in the tails the density is zero; the bound keeps x^2 from overflowing to 0 * inf.
    b = tl.minimum(tl.maximum(x, -64.0), 64.0)
    pdf = 0.39894228040143267794 * tl.exp(-0.5 * b * b)
    return x * cdf, cdf + b * pdf, pdf * (2.0 - b * b)


# x sigmoid(2 k (x + c x^3)) equals x/2 (1 + tanh(k (x + c x^3))) and cancels nowhere.
@triton.jit
def _gelu_tanh(x):
    b = tl.minimum(tl.maximum(x, -64.0), 64.0)  # the sigmoid is 0 or 1 beyond; avoids 0 * inf
    b2 = b * b
    s, ds, flip = _sigmoid_parts(1.59576912160573071176 * b * (1.0 + 0.044715 * b2))
    dz = 1.59576912160573071176 * (1.0 + 3 * 0.044715 * b2)
    ddz = 1.59576912160573071176 * 6 * 0.044715 * b
    return x * s, s + b * ds * dz, ds * (2.0 * dz + b * (ddz + flip * dz * dz))


@triton.jit
def _activation(x, KIND: tl.constexpr):
    """Return f(x), f'(x), f''(x); what is not used costs nothing."""
    if KIND == _GELU:
        value, first, second = _gelu(x)
    elif KIND == _GELU_TANH:
        value, first, second = _gelu_tanh(x)
    else:
        value, first, second = _silu(x)
    return value, first, second


@triton.jit
def _place(batch, size, BLOCK: tl.constexpr):
    """Return group, first element, elements of a program; the groups of a chunk follow each other: they may share."""
    program = tl.program_id(0).to(tl.int64)
    start = program // batch * BLOCK
    i = tl.arange(0, BLOCK)
    return program % batch, start, i, i < size - start


@triton.jit
def activation_forward(x, x_stride, y, batch, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    group, start, i, mask = _place(batch, size, BLOCK)
    value, _, _ = _activation(load_wide(x + (group * x_stride + start) + i, mask), KIND)
    tl.store(y + (group * size + start) + i, value, mask=mask)


@triton.jit
def activation_backward(x, x_stride, g, g_stride, dx, batch, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    group, start, i, mask = _place(batch, size, BLOCK)
    _, first, _ = _activation(load_wide(x + (group * x_stride + start) + i, mask), KIND)
    tl.store(dx + (group * size + start) + i, load_wide(g + (group * g_stride + start) + i, mask) * first, mask=mask)


@triton.jit
def activation_double_backward(
    x, x_stride, g, g_stride, u, u_stride, d_g, d_x, batch, size, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    group, start, i, mask = _place(batch, size, BLOCK)
    _, first, second = _activation(load_wide(x + (group * x_stride + start) + i, mask), KIND)
    v = load_wide(u + (group * u_stride + start) + i, mask)
    if d_g is not None:
        tl.store(d_g + (group * size + start) + i, v * first, mask=mask)
    if d_x is not None:
        tl.store(
            d_x + (group * size + start) + i,
            v * load_wide(g + (group * g_stride + start) + i, mask) * second,
            mask=mask,
        )


@triton.jit
def swiglu_forward(gate, gate_stride, up, up_stride, y, batch, size, BLOCK: tl.constexpr):
    group, start, i, mask = _place(batch, size, BLOCK)
    value, _, _ = _silu(load_wide(gate + (group * gate_stride + start) + i, mask))
    tl.store(y + (group * size + start) + i, value * load_wide(up + (group * up_stride + start) + i, mask), mask=mask)


@triton.jit
def swiglu_backward(gate, gate_stride, up, up_stride, g, g_stride, d_gate, d_up, batch, size, BLOCK: tl.constexpr):
    group, start, i, mask = _place(batch, size, BLOCK)
    value, first, _ = _silu(load_wide(gate + (group * gate_stride + start) + i, mask))
    v = load_wide(g + (group * g_stride + start) + i, mask)
    if d_gate is not None:
        b = load_wide(up + (group * up_stride + start) + i, mask)
        tl.store(d_gate + (group * size + start) + i, v * b * first, mask=mask)
    if d_up is not None:
        tl.store(d_up + (group * size + start) + i, v * value, mask=mask)


@triton.jit
def swiglu_double_backward(
    gate,
    gate_stride,
    up,
    up_stride,
    g,
    g_stride,
    u_gate,
    u_gate_stride,
    u_up,
    u_up_stride,
    d_g,
    d_gate,
    d_up,
    batch,
    size,
    BLOCK: tl.constexpr,
):
    group, start, i, mask = _place(batch, size, BLOCK)
    a = load_wide(gate + (group * gate_stride + start) + i, mask)
    value, first, second = _silu(a)
    b = load_wide(up + (group * up_stride + start) + i, mask)
    v = load_wide(g + (group * g_stride + start) + i, mask)
    ua = tl.zeros_like(a)
    if u_gate is not None:
        ua = load_wide(u_gate + (group * u_gate_stride + start) + i, mask)
    ub = tl.zeros_like(a)
    if u_up is not None:
        ub = load_wide(u_up + (group * u_up_stride + start) + i, mask)
    if d_g is not None:
        tl.store(d_g + (group * size + start) + i, ua * b * first + ub * value, mask=mask)
    if d_gate is not None:
        tl.store(d_gate + (group * size + start) + i, v * (ua * b * second + ub * first), mask=mask)
    if d_up is not None:
        tl.store(d_up + (group * size + start) + i, v * ua * first, mask=mask)


_KERNELS = {
    "activation_forward": activation_forward,
    "activation_backward": activation_backward,
    "activation_double_backward": activation_double_backward,
    "swiglu_forward": swiglu_forward,
    "swiglu_backward": swiglu_backward,
    "swiglu_double_backward": swiglu_double_backward,
}


def run_elementwise(
    name: str,
    kind: int | None,
    batch: int,
    size: int,
    inputs: Sequence[Operand],
    outputs: Sequence[Tensor | None],
) -> None:
    """Run the kernel of that name; see `hvp_engine.kernels.activations` for names, inputs and outputs."""
    operands = [part for operand in inputs for part in operand]
    options = {} if kind is None else {"KIND": kind}
    programs = batch * triton.cdiv(size, _BLOCK)
    launch(_KERNELS[name], programs, *operands, *outputs, batch, size, **options, BLOCK=_BLOCK, num_warps=4)


def resource_cases() -> list[ResourceCase]:
    """Declare every activation in float32, and the one that needs most in all element types."""
    cases = []
    kinds = [("gelu", 0, "fp32"), ("silu", 2, "fp32"), *(("gelu tanh", 1, element) for element in ELEMENTS)]
    for label, kind, element in kinds:
        constants = {"KIND": kind, "BLOCK": _BLOCK}
        name = f"{label}, {element}"
        cases += [
            variant(activation_forward, name, {"x y": element}, constants),
            variant(activation_backward, name, {"x g dx": element}, constants),
            variant(activation_double_backward, name, {"x g u d_g d_x": element}, constants),
        ]
    for element in ELEMENTS:
        everything = {"gate up g u_gate u_up d_g d_gate d_up": element}
        cases += [
            variant(swiglu_forward, element, {"gate up y": element}, {"BLOCK": _BLOCK}),
            variant(swiglu_backward, element, {"gate up g d_gate d_up": element}, {"BLOCK": _BLOCK}),
            variant(swiglu_double_backward, element, everything, {"BLOCK": _BLOCK}),
        ]
    return cases
