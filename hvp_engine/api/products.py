"""Products with the blocks of a curvature matrix, without a job: ``hvp``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision


def hvp(
    model: nn.Module,
    loss: Loss,
    vectors: Mapping[str, Tensor],
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    precision: Precision = "fp32",
) -> dict[str, Tensor]:
    """Hessian-vector products with diagonal blocks of the Hessian.

    Args:
        model: The network; never changed.
        loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None. It returns the mean over its batch as a
            scalar, or ``(total, weight)``.
        vectors: (k, numel) per block name; blocks may be left out.
        blocks: ``None``/``"full"``, ``"parameter"``, ``"module"``, parameter names, a mapping of names to globs, or
            :class:`hvp_engine.Block` objects.
        data: Re-iterable of batches, as for :func:`slq`.
        precision: ``"fp64"``, ``"fp32"``, ``"tf32"`` or ``"bf16"``.

    Returns:
        H_bb v per block, (k, numel), float64 for ``"fp64"`` and float32 otherwise.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    return HessianOperator(model, loss, blocks, data=data, precision=precision).matmat(vectors)
