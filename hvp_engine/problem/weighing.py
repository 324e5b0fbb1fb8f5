"""What a loss returned, read as a total and a weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvp_engine.errors import ObjectiveError
from hvp_engine.problem import batches
from hvp_engine.system.failures import pass_on


class Weighed(NamedTuple):
    """What a loss returned for a batch.

    Attributes:
        total: Scalar, attached to the graph.
        weight: What the objective divides by.
        declared: Whether the loss gave the weight itself, as ``(total, weight)``; else it is the number of samples.
    """

    total: Tensor
    weight: float
    declared: bool


def as_total(value: Any, batch: Any) -> Weighed:
    """Normalise what a loss returned.

    Raises:
        ObjectiveError: It is no scalar, no ``(total, weight)``, or a mean over a batch without samples.
    """
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
    if weight is not None:
        return Weighed(total, weight, declared=True)
    if batches.samples(batch) == 0:
        raise ObjectiveError(
            "A batch has no samples, so the mean over them is not defined; leave empty batches out of the data."
        )
    weight = float(batches.leading(batch) or 1)
    return Weighed(total * weight, weight, declared=False)


def _as_weight(weight: Any) -> float:
    """Read the second value that a loss returned as a number that does not depend on the parameters."""
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ObjectiveError(
            "The loss returned (total, weight) with a weight that depends on the model's parameters; the weight is a "
            "plain count, for instance of tokens. Fold anything else into the total."
        )
    if isinstance(weight, bool) or (isinstance(weight, Tensor) and weight.dtype == torch.bool):
        raise ObjectiveError(
            "The loss returned two values, which are read as (total, weight), but the second one is a truth value; "
            "return the scalar mean alone, or (total, weight)."
        )
    try:
        return float(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        pass_on(error)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ObjectiveError(
            f"The loss returned two values, which are read as (total, weight), but the second one is no number "
            f"({shape}); return the scalar mean alone, or (total, weight)."
        ) from error
