"""Gradients of an operator's objective, of the same micro-batches, weights and parameters as its products."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hvp_engine.errors import NotFiniteError
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.operators.backward import backward
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem.weights import check_sum_of_weights
from hvp_engine.system.failures import failures_in_words


@failures_in_words("gradients were formed")
@torch.inference_mode(False)
def gradient_norms(operator: CurvatureOperator) -> dict[str, float]:
    """Return the length of the gradient with respect to every block, summed over the data in float64.

    Raises:
        NotFiniteError: A gradient is not finite.
        NonDeterministicError: The loss or the data is not what it was before.
    """
    operator.look()
    with retained_heap():
        gradients = operator.scheduler.within_memory(lambda: _summed(operator))
    norms = {
        name: math.sqrt(sum(float(part.take(gradients[part.parameter]).square().sum()) for part in block.parts))
        for name, block in operator.partition.blocks.items()
    }
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise NotFiniteError(
                f"The gradient of block {name!r} is not finite: an operation's derivative is infinite or not a number "
                "there (sqrt or norm at zero, log of zero), or the arithmetic overflows; add a small epsilon to the "
                "operation, or try precision='fp64'."
            )
    return norms


def _summed(operator: CurvatureOperator) -> Mapping[str, Tensor]:
    """Sum the gradients of all micro-batches, and divide by the sum of their weights."""
    objective = operator.objective
    parameters = objective.parameters_named(operator.partition.parameters)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    weights = 0.0
    with objective.arithmetic():
        for micro in operator.scheduler.microbatches():
            total, weight = objective.evaluate(micro.batch, micro.identity)
            weights += weight
            found = backward([total], list(parameters.values()), None)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient
            del total, found
    check_sum_of_weights(objective, weights)
    return {name: gradient.div_(weights) for name, gradient in sums.items()}
