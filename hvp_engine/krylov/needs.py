"""How far one block is from one target, and what would take it there: steps, streams or single products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hvp_engine.results.moments import power_sum
from hvp_engine.results.reading import Reading
from hvp_engine.results.sphere import student, traces
from hvp_engine.results.wasserstein import chance_of_distance, left_to_change

_ROUNDING = 64.0 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Need:
    """How far a block is from a target; all lengths are in one unit.

    Attributes:
        allowed: Half-width of the bar that was asked for.
        krylov: The part of the error that only more steps take away.
        spread: The part of one stream; p streams have ``spread / sqrt(p)``.
        single: The part of one single product, an estimate beside those of the streams; inf where there is none.
        floor: The part that nothing takes away, the noise of the products.
        bar: Half-width of the bar that is published, where that is not what the parts make; nan elsewhere.
    """

    allowed: float
    krylov: float
    spread: float
    single: float = math.inf
    floor: float = 0.0
    bar: float = math.nan

    @property
    def hopeless(self) -> bool:
        """Whether the noise of the products alone is too much."""
        return self.floor >= self.allowed

    @property
    def fewest(self) -> int:
        """Streams that chance alone asks for, however many steps they take."""
        return _count(self.spread, self.allowed - self.floor)

    def error(self, probes: int, singles: int) -> float:
        """Return the half-width of the bar, where there are so many streams and single products."""
        if not math.isnan(self.bar):
            return self.bar
        parts = [(self.spread, probes), (self.single, singles)]
        if any(part**2 == 0.0 and count for part, count in parts):
            return self.krylov + self.floor
        precision = sum(count / part**2 for part, count in parts if count)
        chance = 1.0 / math.sqrt(precision) if precision else math.inf
        return math.hypot(self.krylov, chance) + self.floor

    def probes(self) -> int:
        """Return how many streams meet the target, or come as near to it as is worth while."""
        return _count(self.spread, self._room)

    def singles(self, probes: int) -> int:
        """Return how many single products beside so many streams do the same; 0 where these help nothing."""
        if math.isinf(self.single):
            return 0
        lacking = self.single**2 * (1.0 / self._room**2 - probes / self.spread**2) if self.spread > 0.0 else 0.0
        return max(0, math.ceil(lacking * (1.0 - _ROUNDING)))

    def steps_suffice(self, steps: int, every: int, most: float) -> bool:
        """Say whether the streams are cheapest at this length: products are their number times their steps.

        Args:
            steps: Their length.
            every: By how many steps they would be longer at the next check.
            most: The most streams that there may be. Where these are too few, or the noise is too much, steps that
                would take away less than an eighth of the error are not worth while.
        """
        if self.hopeless or self.fewest > most:
            return self.krylov <= 0.5 * max(self.floor, self.spread / math.sqrt(most))
        enough = self.krylov < self.allowed - self.floor and self.probes() <= most
        return enough and steps * self.probes() <= (steps + every) * self.fewest

    @property
    def _room(self) -> float:
        """Half-width that is left for chance."""
        if self.hopeless:
            return self.floor
        left = self.allowed - self.floor
        return math.sqrt(left**2 - self.krylov**2) if left > self.krylov else left


def _count(spread: float, room: float) -> int:
    if not 0.0 < room < math.inf or math.isinf(spread):
        return 1
    return max(1, math.ceil((spread / room) ** 2 * (1.0 - _ROUNDING)))


def distribution(reading: Reading, tolerance: float) -> Need:
    """Measure a block against a target for its distribution, in Wasserstein-1 distance.

    Noise of the products moves eigenvalues by its root of squares at most, on average (Hoffman and Wielandt, "The
    variation of the spectrum of a normal matrix", Duke Math. J. 20, 1953).

    Args:
        reading: What is known.
        tolerance: Half-width, relative to the standard deviation of the eigenvalues.
    """
    rule = reading.variance_reduced
    mean, square = float(rule.weights @ rule.nodes), float(rule.weights @ rule.nodes**2)
    deviation = math.sqrt(float(rule.weights @ (rule.nodes - mean) ** 2))
    if deviation <= _ROUNDING * math.sqrt(square):  # no spread; or after one step, none that is known
        found = reading.found
        one_step = found.steps == 1
        return Need(tolerance, float((found.residuals[one_step] > _ROUNDING * math.sqrt(square)).any()), 0.0)
    spread = chance_of_distance(reading.averaged) / deviation
    floor = reading.found.noise * math.sqrt(square) / deviation
    return Need(tolerance, left_to_change(reading) / deviation, spread, floor=floor)


def trace(reading: Reading, tolerance: float) -> Need:
    """Measure a block against a target for its trace, relative to its magnitude.

    No step is missing for it, as every stream estimates the trace without a bias. Single products are estimates beside
    those of the streams, for one product each: after deflation they scatter no more than a stream's free part.
    """
    whole = power_sum(reading, 1)
    values, variances = traces(reading.found.numel, reading.ritz, reading.accepted, np.positive)
    spread = student(math.inf) * math.sqrt(float(variances.mean()))
    single = spread if reading.found.reorthogonalized and not reading.exact else math.inf
    if (known := reading.deflated) is not None:
        single = student(known.freedom) * math.sqrt(known.trace_variance * known.products)
    rule = reading.variance_reduced
    floor = 2.0 * reading.found.noise * math.sqrt(rule.numel * float(rule.weights @ rule.nodes**2))
    size = abs(whole.value) if whole.value else float(abs(values).max()) or 1.0
    return Need(tolerance, 0.0, spread / size, single / size, floor / size)
