"""Finds a model's linear head: a layer with more classes than inputs whose output goes into cross-entropy alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvp_engine.errors import BackendError, HvpEngineError
from hvp_engine.ops.head.lazy_logits import FusedHead, HeadLogits
from hvp_engine.problem.objective import Objective

log = logging.getLogger(__name__)

Serving = Callable[[FusedHead | None], AbstractContextManager[None]]


@dataclass(frozen=True)
class LinearHead:
    """A linear layer with more classes than inputs whose output goes into cross-entropy and nowhere else.

    Attributes:
        name: Parameter name of its weights.
        weight: The weights (V, d).
        rows: Rows of logits that a few samples have (`batches.few_samples`).
    """

    name: str
    weight: Tensor
    rows: int


class _Search(FusedHead):
    """Records which weights' logits reach a cross-entropy uncomputed."""

    def __init__(self, parameters: set[int]) -> None:
        self._parameters = parameters
        self.found: list[tuple[Tensor, int]] = []
        self.rounded = False  # whether products are in low precision
        self.keep_logits = False

    def matches(self, weight: Tensor) -> bool:
        return id(weight) in self._parameters

    def loss(self, logits: HeadLogits, target: Tensor, **options: Any) -> Tensor:
        self.found.append((logits.weight, logits.hidden.shape[0]))
        self.rounded |= logits.autocast is not None
        return super().loss(logits, target, **options)


def head_candidates(parameters: Mapping[str, Tensor]) -> dict[int, str]:
    """Name by their ids the matrices with more outputs than inputs: only there does a head's curvature gain."""
    return {id(p): name for name, p in parameters.items() if p.dim() == 2 and p.shape[0] > p.shape[1]}


def find_head(objective: Objective, batch: Any, serving: Serving, plain: float | None = None) -> LinearHead | None:
    """Run the loss on a few samples with every wide linear layer's output left uncomputed; see which one is a head.

    Args:
        objective: Loss and parameters.
        batch: A batch of the data.
        serving: Context in which a head, or none, serves the losses.
        plain: What :meth:`hvp_engine.problem.objective.Objective.spot_value` gave without a head, where that is known.

    Returns:
        The head, or None: no such layer, several, or a loss that differs from the one with logits.
    """
    names = head_candidates(objective.parameters)
    if not names:
        return None
    search = _Search(set(names))
    try:
        if plain is None:
            with serving(None):
                plain = objective.spot_value(batch)
        with serving(search):
            lazy = objective.spot_value(batch)
    except BackendError:  # not the loss's, and nothing to do without
        raise
    except (HvpEngineError, RuntimeError) as error:  # a loss that fails without it too says so when it runs next
        log.info("no head fused: %s", error)
        return None
    weights = {id(weight) for weight, _ in search.found}
    tolerance = 1e-2 if search.rounded else 1e-4
    if len(weights) != 1 or abs(plain - lazy) > tolerance * max(abs(plain), abs(lazy)):
        return None
    weight = search.found[0][0]
    return LinearHead(names[id(weight)], weight, sum(rows for _, rows in search.found))
