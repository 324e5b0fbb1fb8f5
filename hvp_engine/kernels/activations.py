"""Element-wise operations on the kernels of the device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvp_engine.kernels.records import Operand, is_shared
from hvp_engine.kernels.registry import implementation

__all__ = ["run_elementwise"]


def run_elementwise(
    name: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], kind: int | None = None
) -> None:
    """Run the kernel of one derivative of an activation.

    Inputs and outputs by name, f an activation and kind its number in csrc/include/hvp/activations.h:

    - activation_forward: (x) to (f(x));
    - activation_backward: (x, g) to (dx);
    - activation_double_backward: (x, g, u) to (d_g, d_x), for a cotangent u of dx;
    - swiglu_forward: (gate, up) to (y);
    - swiglu_backward: (gate, up, g) to (d_gate, d_up);
    - swiglu_double_backward: (gate, up, g, u_gate, u_up) to (d_g, d_gate, d_up).

    Args:
        name: Name of the kernel.
        inputs: Equally shaped tensors; None stands for a cotangent of zeros. A leading dimension along which one
            is expanded (as vmap rules make it) is not copied; any other non-contiguous tensor is.
        outputs: Contiguous tensors, overwritten; None for those not wanted.
        kind: Number of the activation, None for swiglu.
    """
    first = next(tensor for tensor in inputs if tensor is not None)
    batch, size, operands = _laid_out(first, inputs)
    implementation("activations", first.device).run_elementwise(name, kind, batch, size, operands, outputs)


def _laid_out(first: Tensor, inputs: Sequence[Tensor | None]) -> tuple[int, int, list[Operand]]:
    """Return groups, elements per group, and every input as contiguous groups with the stride between them."""
    if all(tensor is None or tensor.is_contiguous() for tensor in inputs):
        return 1, first.numel(), [(tensor, 0) for tensor in inputs]
    batch = first.shape[0] if first.dim() else 1
    size = first.numel() // batch
    operands: list[Operand] = []
    for tensor in inputs:
        shared = tensor is not None and is_shared(tensor)
        operands.append((tensor if tensor is None or shared else tensor.contiguous(), 0 if shared else size))
    return batch, size, operands
