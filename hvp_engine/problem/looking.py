"""Looks at a loss: evaluations of which only the value is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvp_engine.errors import HvpEngineError
from hvp_engine.problem import batches

Evaluate = Callable[[Any], tuple[Tensor, float]]


def needs_gradients(evaluate: Evaluate, batch: Any) -> bool:
    """Say whether a loss is another one, or none, while gradients are switched off.

    A loss that differentiates inside (a penalty on input gradients, forces, an inner training step) cannot run then,
    and one that asks whether gradients are on may compute something else. All others are looked at without making a
    graph, which for a whole batch may not fit into memory.

    Args:
        evaluate: Returns total and weight of a batch; called with the engine's arithmetic in force.
        batch: A batch; a few samples of it are evaluated, or all where those define no loss.
    """
    few = batches.few_samples(batch)
    for piece in (few, batch):
        with torch.no_grad():
            without = _total(evaluate, piece)
        if without is None or piece is few:
            with torch.enable_grad():
                within = _total(evaluate, piece)
            if within is not None:
                return without is None or abs(without - within) > 1e-6 * max(abs(without), abs(within))
    return False


def _total(evaluate: Evaluate, batch: Any) -> float | None:
    """Return the total of a batch, or None where the loss fails."""
    try:
        return float(evaluate(batch)[0].detach())
    except HvpEngineError:
        return None
