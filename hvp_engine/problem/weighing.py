"""What a loss returned, read as a total and a weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvp_engine.errors import ObjectiveError
from hvp_engine.problem import batches


def as_total(value: Any, batch: Any) -> tuple[Tensor, float]:
    """Normalise what a loss returned to (total, weight)."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ObjectiveError(f"The loss returned {len(value)} values; return a scalar mean or (total, weight).")
        total, weight = value
        weight = _as_weight(weight)
        if weight < 0:
            raise ObjectiveError(f"The loss returned the negative weight {weight}.")
    else:
        total, weight = value, None
    if not isinstance(total, Tensor) or total.numel() != 1:
        shape = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
        raise ObjectiveError(f"The loss must be a scalar tensor, got {shape}; reduce it, for instance with .mean().")
    if not total.is_floating_point():
        raise ObjectiveError(f"The loss must be a real floating-point tensor, got {total.dtype}.")
    total = total.reshape(())
    if weight is None:
        weight = float(batches.leading(batch) or 1)
        total = total * weight
    return total, weight


def _as_weight(weight: Any) -> float:
    """Read the second value that a loss returned as a number that does not depend on the parameters."""
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ObjectiveError(
            "The loss returned (total, weight) with a weight that depends on the model's parameters; the weight is a "
            "plain count, for instance of tokens. Fold anything else into the total."
        )
    try:
        return float(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ObjectiveError(
            f"The loss returned two values, which are read as (total, weight), but the second one is no number "
            f"({shape}); return the scalar mean alone, or (total, weight)."
        ) from error
