"""Element-wise activations whose forward, backward and backward-of-backward are one fused pass each.

For y = f(x): dx = g f'(x), and for a cotangent u of dx: d_g = u f'(x), d_x = u g f''(x). Only x is kept; the
derivatives are recomputed from it, so memory is that of the inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.activations import run_elementwise
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import fused_applies
from hvp_engine.ops.arguments import check_tensor, run_plain
from hvp_engine.ops.autograd import BatchedFunction, sum_present
from hvp_engine.ops.third import LastDerivative, keep_arguments
from hvp_engine.ops.vmap import batch_first
from hvp_engine.ops.written_out import gelu_slopes, silu_slopes

__all__ = ["gelu", "gelu_ref", "silu", "silu_ref", "swiglu", "swiglu_ref"]

# Activations as csrc/include/hvp/activations.h numbers them.
_GELU = {"none": 0, "tanh": 1}
_SILU = 2
_aten = torch.ops.aten


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _slopes(x: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    if kind == _SILU:
        return silu_slopes(x)
    return gelu_slopes(x, "tanh" if kind == _GELU["tanh"] else "none")


def _activation_second(
    u: Tensor, g: Tensor, x: Tensor, kind: int, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Do what `_ActivationDoubleBackward` does, in plain PyTorch."""
    acc = accumulator(x.dtype)
    u, g = u.to(acc), g.to(acc)
    first, second = _slopes(x.to(acc), kind)
    return (u * first).to(x.dtype) if needs[0] else None, (u * g * second).to(x.dtype) if needs[1] else None


def _swiglu_second(
    u_gate: Tensor | None, u_up: Tensor | None, g: Tensor, gate: Tensor, up: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Do what `_SwiGLUDoubleBackward` does, in plain PyTorch."""
    acc, dtype = accumulator(gate.dtype), gate.dtype
    u_gate, u_up = (torch.zeros_like(g, dtype=acc) if u is None else u.to(acc) for u in (u_gate, u_up))
    g, gate, up = g.to(acc), gate.to(acc), up.to(acc)
    first, second = silu_slopes(gate)
    value = gate * torch.sigmoid(gate)
    d_g = u_gate * up * first + u_up * value
    d_gate = g * (u_gate * up * second + u_up * first)
    d_up = u_gate * g * first
    return tuple(d.to(dtype) if need else None for d, need in zip((d_g, d_gate, d_up), needs, strict=True))


class _Activation(BatchedFunction):
    @staticmethod
    def forward(x: Tensor, kind: int) -> Tensor:
        y = _empty(x)
        run_elementwise("activation_forward", (x,), (y,), kind)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.kind = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, None]:
        return None if g is None else _ActivationBackward.apply(g, *ctx.saved_tensors, ctx.kind), None

    @staticmethod
    def jvp(ctx: Any, t_x: Tensor, _kind: None) -> Any:
        return _ActivationBackward.apply(t_x, *ctx.saved_tensors, ctx.kind)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, kind: int) -> tuple[Tensor, int]:
        return _Activation.apply(*batch_first(info.batch_size, in_dims, [x]), kind), 0


class _ActivationBackward(BatchedFunction):
    @staticmethod
    def forward(g: Tensor, x: Tensor, kind: int) -> Tensor:
        dx = _empty(x)
        run_elementwise("activation_backward", (x, g), (dx,), kind)
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, ctx.kind = inputs
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if u is None:
            return None, None, None
        needs = ctx.needs_input_grad[:2]
        return *_ActivationDoubleBackward.apply(u, *ctx.saved_tensors, ctx.kind, needs), None

    @staticmethod
    def jvp(ctx: Any, t_g: Tensor | None, t_x: Tensor | None, _kind: None) -> Tensor | None:
        g, x = ctx.saved_tensors
        along_g = None if t_g is None else _ActivationBackward.apply(t_g, x, ctx.kind)
        along_x = None if t_x is None else _ActivationDoubleBackward.apply(t_x, g, x, ctx.kind, (False, True))[1]
        return sum_present(along_g, along_x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], g: Tensor, x: Tensor, kind: int) -> tuple[Tensor, int]:
        return _ActivationBackward.apply(*batch_first(info.batch_size, in_dims, [g, x]), kind), 0


class _ActivationDoubleBackward(LastDerivative):
    @staticmethod
    def forward(
        u: Tensor, g: Tensor, x: Tensor, kind: int, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        d_g, d_x = (_empty(x) if need else None for need in needs)
        run_elementwise("activation_double_backward", (x, g, u), (d_g, d_x), kind)
        return d_g, d_x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep_arguments(ctx, inputs, _activation_second)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        tensors = batch_first(info.batch_size, in_dims, args[:3])
        return _ActivationDoubleBackward.apply(*tensors, *args[3:]), tuple(0 if need else None for need in args[4])


class _SwiGLU(BatchedFunction):
    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        y = _empty(gate)
        run_elementwise("swiglu_forward", (gate, up), (y,))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return None, None
        return _SwiGLUBackward.apply(g, *ctx.saved_tensors, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, t_gate: Tensor | None, t_up: Tensor | None) -> Tensor | None:
        operands = ctx.saved_tensors
        along_gate = None if t_gate is None else _SwiGLUBackward.apply(t_gate, *operands, (True, False))[0]
        along_up = None if t_up is None else _SwiGLUBackward.apply(t_up, *operands, (False, True))[1]
        return sum_present(along_gate, along_up)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gate: Tensor, up: Tensor) -> tuple[Tensor, int]:
        return _SwiGLU.apply(*batch_first(info.batch_size, in_dims, [gate, up])), 0


class _SwiGLUBackward(BatchedFunction):
    @staticmethod
    def forward(g: Tensor, gate: Tensor, up: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        d_gate, d_up = (_empty(gate) if need else None for need in needs)
        run_elementwise("swiglu_backward", (gate, up, g), (d_gate, d_up))
        return d_gate, d_up

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.needs = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, u_gate: Tensor | None, u_up: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if u_gate is None and u_up is None:
            return None, None, None, None
        needs = ctx.needs_input_grad[:3]
        return *_SwiGLUDoubleBackward.apply(u_gate, u_up, *ctx.saved_tensors, needs), None

    @staticmethod
    def jvp(
        ctx: Any, t_g: Tensor | None, t_gate: Tensor | None, t_up: Tensor | None, _needs: None
    ) -> tuple[Tensor | None, Tensor | None]:
        g, gate, up = ctx.saved_tensors
        along_g = (None, None) if t_g is None else _SwiGLUBackward.apply(t_g, gate, up, ctx.needs)
        along_rest: tuple[Tensor | None, ...] = (None, None)
        if t_gate is not None or t_up is not None:
            needs = (False, *ctx.needs)
            along_rest = _SwiGLUDoubleBackward.apply(t_gate, t_up, g, gate, up, needs)[1:]
        return sum_present(along_g[0], along_rest[0]), sum_present(along_g[1], along_rest[1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        tensors = batch_first(info.batch_size, in_dims, args[:3])
        return _SwiGLUBackward.apply(*tensors, args[3]), tuple(0 if need else None for need in args[3])


class _SwiGLUDoubleBackward(LastDerivative):
    @staticmethod
    def forward(
        u_gate: Tensor | None,
        u_up: Tensor | None,
        g: Tensor,
        gate: Tensor,
        up: Tensor,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        outputs = tuple(_empty(gate) if need else None for need in needs)
        run_elementwise("swiglu_double_backward", (gate, up, g, u_gate, u_up), outputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep_arguments(ctx, inputs, _swiglu_second)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        tensors = batch_first(info.batch_size, in_dims, args[:5])
        return _SwiGLUDoubleBackward.apply(*tensors, args[5]), tuple(0 if need else None for need in args[5])


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Compute the Gaussian error linear unit, x Phi(x), differentiable twice in fused passes.

    Hendrycks and Gimpel (2016), "Gaussian Error Linear Units". Fused kernels serve tensors of dtype float32,
    float64 and bfloat16 (computed in float32) on CPUs and CUDA; everything else takes `gelu_ref`.

    Args:
        input: Any shape and strides.
        approximate: "none" for the exact function, "tanh" for its tanh approximation.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ConfigurationError: `approximate` is neither "none" nor "tanh", or the input is not of real floating-point
            numbers.
    """
    kind = _GELU.get(approximate)
    if kind is None:
        raise ConfigurationError(f"approximate={approximate!r} is no form of gelu; pass 'none' or 'tanh'.")
    if fused_applies("activations", input):
        output: Tensor = _Activation.apply(input, kind)
        return output
    return run_plain("gelu", lambda: gelu_ref(input, approximate), {"input": input})


def gelu_ref(input: Tensor, approximate: str = "none") -> Tensor:
    """Compute `gelu` in plain PyTorch."""
    output: Tensor = _aten.gelu.default(input, approximate=approximate)
    return output


def silu(input: Tensor) -> Tensor:
    """Compute the sigmoid linear unit, x sigmoid(x), differentiable twice in fused passes.

    Elfwing, Uchibe and Doya (2018), "Sigmoid-weighted linear units". Dtypes and fallback as for `gelu`.

    Args:
        input: Any shape and strides.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ConfigurationError: The input is not of real floating-point numbers.
    """
    if fused_applies("activations", input):
        output: Tensor = _Activation.apply(input, _SILU)
        return output
    return run_plain("silu", lambda: silu_ref(input), {"input": input})


def silu_ref(input: Tensor) -> Tensor:
    """Compute `silu` in plain PyTorch."""
    output: Tensor = _aten.silu.default(input)
    return output


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute the gated linear unit with SiLU, silu(gate) * up, differentiable twice in fused passes.

    Shazeer (2020), "GLU Variants Improve Transformer". Dtypes and fallback as for `gelu`; operands of
    different shapes broadcast.

    Args:
        gate: Any shape and strides.
        up: A shape that broadcasts with `gate`.

    Returns:
        A tensor of the broadcast shape.

    Raises:
        ConfigurationError: The operands are not of real floating-point numbers, or do not broadcast.
    """
    check_tensor("swiglu", "gate", gate)
    check_tensor("swiglu", "up", up)
    if gate.dtype != up.dtype or not fused_applies("activations", gate, up):
        return run_plain("swiglu", lambda: swiglu_ref(gate, up), {"gate": gate, "up": up})
    if gate.shape != up.shape:
        try:
            gate, up = torch.broadcast_tensors(gate, up)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConfigurationError(
                f"swiglu got operands of shapes {tuple(gate.shape)} and {tuple(up.shape)}, which do not broadcast; "
                "make them equal."
            ) from error
    output: Tensor = _SwiGLU.apply(gate, up)
    return output


def swiglu_ref(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `swiglu` in plain PyTorch."""
    return silu_ref(gate) * up
