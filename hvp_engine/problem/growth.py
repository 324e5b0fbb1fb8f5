"""How what a loss returns grows with its batch: as a mean, a sum, a count, or none of these, seen on a few samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hvp_engine.errors import HvpEngineError
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.precision import Precision

# Relative rounding: by so much two evaluations of the same samples, in batches of other sizes, may differ.
ROUNDING: dict[Precision, float] = {"fp64": 1e-9, "fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}

Growth = Literal["sum", "mean", "constant", "other"]


@dataclass(frozen=True)
class Value:
    """What a loss returned for some samples, as numbers.

    Attributes:
        total: The total, or the scalar times the number of samples.
        weight: The weight, or the number of samples.
    """

    total: float
    weight: float


@dataclass(frozen=True)
class Grown:
    """How a loss grows with its batch; None where no samples tell.

    Attributes:
        value: The scalar, or the total of ``(total, weight)``: "sum", "mean" or "other".
        weight: The weight: "sum" (a count), "constant" or "other".
    """

    value: Growth | None = None
    weight: Growth | None = None


def value_of(objective: Objective, batch: Any) -> Value:
    """Evaluate a batch, without a graph where the loss allows it; call inside the objective's arithmetic."""
    with objective.looking(batch):
        total, weight = objective.evaluate(batch)
    return Value(float(total.detach()), weight)


def growth(objective: Objective, batch: Any) -> Grown:
    """Evaluate two samples one by one and together; call inside the objective's arithmetic.

    Other samples are tried where these do not tell, because their loss or weight is zero or the loss refuses them.
    """
    return _Watch(objective, batch).grown()


class _Watch:
    """Samples of one batch, evaluated."""

    def __init__(self, objective: Objective, batch: Any) -> None:
        self._objective, self._batch = objective, batch
        self._size = batches.samples(batch) or 0
        self._tolerance = max(1e-3, 2 * ROUNDING[objective.precision])

    def grown(self) -> Grown:
        value: Growth | None = None
        weight: Growth | None = None
        for start, width in self._places():
            try:
                first, second = self._value(start, width), self._value(start + width, width)
                both = self._value(start, 2 * width)
                value = value or self._of_value(first, second, both, start, width)
            except HvpEngineError:  # samples without a target, or a loss that takes whole batches only
                continue
            weight = weight or _of_weight(first.weight, second.weight, both.weight)
            if value is not None and weight is not None:
                break
        return Grown(value, weight)

    def _places(self) -> list[tuple[int, int]]:
        """List starts and widths of the samples to compare: pairs from everywhere, then two and two, then halves."""
        size = self._size
        places = [(start, 1) for start in (0, size - 2, size // 2 - 1) if 0 <= start <= size - 2]
        wider = [(0, width) for width in (2, size // 2) if width > 1 and 2 * width <= size]
        return list(dict.fromkeys([*places, *wider]))

    def _value(self, start: int, width: int) -> Value:
        piece = batches.cut(self._batch, start, start + width)
        if width > 2:
            return value_of(self._objective, piece)
        # With a graph: a weight that hangs on the parameters is refused by its own error.
        total, weight = self._objective.evaluate(piece)
        return Value(float(total.detach()), weight)

    def _raw(self, value: Value) -> float:
        """Return what the loss itself gave as its value."""
        return value.total if self._objective.declares_weight else value.total / value.weight

    def _of_value(self, first: Value, second: Value, both: Value, start: int, width: int) -> Growth | None:
        a, b, whole = self._raw(first), self._raw(second), self._raw(both)
        scale = abs(a) + abs(b)
        if min(abs(a), abs(b)) < 5 * self._tolerance * max(abs(a), abs(b)) or abs(a + b) <= 0.1 * scale:
            return None  # a sum and a mean would be the same
        rest = a + b - whole  # of a sum: what does not depend on the samples, a penalty for large weights, say
        if abs(rest) <= self._tolerance * scale:
            return "sum" if self._objective.declares_weight else self._confirmed(whole, 0.0, start, width)
        weights = first.weight + second.weight
        means = [(a + b) / 2, *([(first.weight * a + second.weight * b) / weights] if weights else ())]
        if any(abs(whole - mean) <= self._tolerance * scale for mean in means):
            return "mean"
        # A weighted mean lies between a and b, so that one of these would be negative.
        adds = min((a - rest) * (1 if whole > rest else -1), (b - rest) * (1 if whole > rest else -1)) > 0.05 * scale
        return self._confirmed(whole, rest, start, width) if adds and not self._objective.declares_weight else "other"

    def _confirmed(self, both: float, rest: float, start: int, width: int) -> Growth | None:
        """Say whether a third piece adds too: contrastive losses, log 2 of two and log 4 of four samples, do not."""
        if 3 * width > self._size:
            return "sum" if width == 1 and rest == 0 else None
        before = start + 3 * width > self._size
        third = self._raw(self._value(start - width if before else start + 2 * width, width))
        whole = self._raw(self._value(start - width if before else start, 3 * width))
        adds = abs(whole - both - third + rest) <= self._tolerance * (abs(both) + abs(third) + abs(rest))
        return "sum" if adds else "other"


def _of_weight(first: float, second: float, both: float) -> Growth | None:
    if first == second == both == 0:
        return None
    if abs(both - first - second) <= 1e-2 * (first + second):  # counts in bfloat16 are rounded
        return "sum"
    return "constant" if first == second == both else "other"
