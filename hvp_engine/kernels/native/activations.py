"""Element-wise activations on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.records import Operand
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["run_elementwise"]


def run_elementwise(
    name: str, kind: int | None, batch: int, size: int, inputs: Sequence[Operand], outputs: Sequence[Tensor | None]
) -> None:
    """Run the kernel of that name; see `hvp_engine.kernels.activations` for names, inputs and outputs.

    Args:
        name: Name of the kernel.
        kind: Number of the activation, None for swiglu.
        batch: Groups of elements.
        size: Elements per group.
        inputs: Tensors with the strides between their groups.
        outputs: Contiguous tensors, overwritten; None for those not wanted.
    """
    first = next(tensor for tensor, _ in inputs if tensor is not None)
    addresses = [part for tensor, stride in inputs for part in (address(tensor), stride)]
    kinds = () if kind is None else (kind,)
    getattr(native, name)(*kinds, dtype_number(first.dtype), batch, size, *addresses, *map(address, outputs))
