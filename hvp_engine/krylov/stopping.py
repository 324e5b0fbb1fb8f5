"""When a block knows enough: a pure rule from Lanczos coefficients to what the targets still need.

Everything here is a function of what the streams found, so a job that resumes decides what it decided before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov import shape_needs
from hvp_engine.krylov.needs import Need, distribution, trace
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.reading import Reading
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.zero_blocks import is_zero, rounding

FIRST_CHECK, CHECK_EVERY = 10, 5  # steps before the first check, and from one check to the next
DEFAULT_TOLERANCE = 0.02
_SMALLEST = 1e-12
_FRACTIONS = ("w1", "js")  # targets that say nothing at 1 and above
_STRETCHED = 1.5  # a block to come may differ more than the one that stands for it, when a stream has long ended


@dataclass(frozen=True)
class Targets:
    """How accurate a block's spectrum is to be; each target is the half-width of a 95 % bar.

    Attributes:
        w1: Of the distribution of the eigenvalues, in Wasserstein-1 distance, relative to their standard deviation.
        js: Of every Jensen-Shannon divergence with another block, absolute.
        trace: Of the trace, relative to its magnitude.
        density: Of the smoothed density, in decades.
    """

    w1: float | None = None
    js: float | None = None
    trace: float | None = None
    density: float | None = None

    @classmethod
    def parse(cls, tolerance: float | Mapping[str, float]) -> Targets:
        """Read what a user asked for: a number, which is the target ``w1``, or numbers by the names of targets.

        Raises:
            ConfigurationError: It is neither, a name is unknown, or a number cannot be a target.
        """
        given = tolerance if isinstance(tolerance, Mapping) else {"w1": tolerance}
        if not given:
            raise ConfigurationError("tolerance={} names no target; give a number, or one by name as in {'w1': 0.02}.")
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.4)
                hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ConfigurationError(
                    f"tolerance has no target named {name!r}; there are {', '.join(map(repr, names))}.{hint}"
                )
        alone = not isinstance(tolerance, Mapping)
        return cls(**{name: _checked(name, value, alone) for name, value in given.items()})

    def check_blocks(self, blocks: int) -> None:
        """Refuse a target between blocks where there are not two.

        Raises:
            ConfigurationError: There are not.
        """
        if self.js is not None and blocks < 2:
            raise ConfigurationError(
                "tolerance has a target 'js', which is between blocks, and the job has one: give more in blocks=, "
                "as blocks='parameter' does, or another target."
            )

    def record(self) -> dict[str, float]:
        """Return the targets that were asked for as plain data, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Verdict:
    """What one block's coefficients say about its targets.

    Attributes:
        reached: Whether they meet every target.
        steps_suffice: Whether more steps are not what is missing.
        probes: Streams that the targets need in all, at these steps; no fewer than there are.
        singles: Single products that the targets need in all.
        errors: Estimated half-width of the bar, by the name of its target.
        reason: Why nothing more would help, where a target is not met and nothing would; else empty.
        zero: Whether the block has no curvature to speak of.
    """

    reached: bool
    steps_suffice: bool
    probes: int
    singles: int
    errors: Mapping[str, float]
    reason: str = ""
    zero: bool = False


@dataclass(frozen=True)
class Ceilings:
    """The most that a block may have: what these could not use is not asked for.

    Attributes:
        probes: Streams.
        singles: Single products.
    """

    probes: float = math.inf
    singles: float = math.inf


def judge(
    blocks: Mapping[str, Coefficients],
    targets: Targets,
    singles: Mapping[str, FloatArray] | None = None,
    *,
    asked: Collection[str] | None = None,
    ceilings: Ceilings | None = None,
    more_to_come: bool = False,
    precision: object = None,
) -> dict[str, Verdict]:
    """Say for every block whether its targets are met, and what they need where they are not.

    Args:
        blocks: What the streams of each block have found so far.
        targets: What is asked for.
        singles: Single products of the blocks that have some, rows as in ``Spectrum.singles``; deflated were all
            Lanczos vectors of probe 0 but the last.
        asked: The blocks to judge; None for all.
        ceilings: What a block may have; None for no end. Steps beyond what so many streams could use are not asked
            for; the numbers of a verdict are those that the targets need, whatever the ceilings are.
        more_to_come: Whether there are blocks of which nothing is known yet. A block is held against its own spectrum
            stretched to twice the width in their place, lest its stream end before there is anything to differ from.
        precision: Arithmetic of the products, as :func:`hvp_engine.results.zero_blocks.zero_blocks` takes it.
    """
    rule = _Rule(blocks, targets, singles or {}, ceilings or Ceilings(), more_to_come)
    rule.leave_out_zeros(rounding(precision))
    return {name: rule.verdict(name) for name in (blocks if asked is None else asked)}


class _Rule:
    """Targets, and what is known of all blocks.

    Attributes:
        asked: The targets by name.
        readings: Of the blocks.
        singles: How many single products each has.
        ceilings: What a block may have.
        more_to_come: Whether there are further blocks.
    """

    def __init__(
        self,
        blocks: Mapping[str, Coefficients],
        targets: Targets,
        singles: Mapping[str, FloatArray],
        ceilings: Ceilings,
        more_to_come: bool,
    ) -> None:
        self.asked, self.ceilings, self.more_to_come = targets.record(), ceilings, more_to_come
        self.singles = {name: len(singles.get(name, ())) for name in blocks}
        self.readings = {
            name: Reading(found, singles.get(name), int(found.steps[0]) - 1) for name, found in blocks.items()
        }
        self.zero: set[str] = set()

    def leave_out_zeros(self, unit: float) -> None:
        """Take blocks for done that have no curvature but rounding, of this unit."""
        found = {name: reading.found for name, reading in self.readings.items()}
        least = unit * max((float(abs(f.alphas).max()) for f in found.values()), default=0.0)
        sizes = {name: float(abs(f.alphas).max() + abs(f.betas).max(initial=0.0)) for name, f in found.items()}
        self.zero = {name for name, f in found.items() if is_zero(sizes[name], least, f.noise)}

    def verdict(self, name: str) -> Verdict:
        reading, done = self.readings[name], self.singles[name]
        found, probes = reading.found, len(reading.found.steps)
        if reading.exact or name in self.zero:
            return Verdict(True, True, probes, done, dict.fromkeys(self.asked, 0.0), zero=name in self.zero)
        needs = self._needs(name)
        errors = {target: need.error(probes, done) for target, need in needs.items()}
        reached = all(errors[target] <= self.asked[target] for target in needs)
        wanted = max([probes, *(self._probes(need) for need in needs.values())])
        more = max([done, *(need.singles(wanted) for need in needs.values())])
        return Verdict(
            reached=reached,
            steps_suffice=bool((found.residuals == 0.0).all()) or self._steps_suffice(found, needs),
            probes=wanted,
            singles=more,
            errors=errors,
            reason="" if reached or wanted > probes or more > done else _noise(needs),
        )

    def _needs(self, name: str) -> dict[str, Need]:
        reading, needs = self.readings[name], {}
        for target, tolerance in self.asked.items():
            if target == "w1":
                needs[target] = distribution(reading, tolerance)
            elif target == "trace":
                needs[target] = trace(reading, tolerance)
            elif target == "density":
                needs[target] = shape_needs.density(reading, name, tolerance)
            elif pairs := self._pairs_of(name):
                needs[target] = max(pairs, key=lambda need: need.krylov)
        return needs

    def _pairs_of(self, name: str) -> list[Need]:
        needs = [self._pairs[name]] if name in self._pairs else []
        if self.more_to_come:
            reading = self.readings[name]
            both = {name: reading, f"{name}, stretched": Reading(_stretched(reading.found))}
            need = shape_needs.divergence(both, self.asked["js"])[name]
            needs.append(replace(need, krylov=_STRETCHED * need.krylov))
        return needs

    @cached_property
    def _pairs(self) -> dict[str, Need]:
        """What each block needs for its divergences from the others; none where there is no other."""
        readings = {name: reading for name, reading in self.readings.items() if name not in self.zero}
        return shape_needs.divergence(readings, self.asked["js"]) if len(readings) > 1 else {}

    def _probes(self, need: Need) -> int:
        """Return how many streams one target needs: where single products help they come first."""
        if math.isinf(need.single) or need.singles(1) <= self.ceilings.singles:
            return 1 if not math.isinf(need.single) else need.probes()
        return need.probes()

    def _steps_suffice(self, found: Coefficients, needs: Mapping[str, Need]) -> bool:
        steps = int(found.steps.max())
        for name, need in needs.items():
            if name != "trace":
                if not need.steps_suffice(steps, CHECK_EVERY, self.ceilings.probes):
                    return False
            elif steps > CHECK_EVERY:
                before = trace(Reading(found.truncated(steps - CHECK_EVERY)), self.asked[name])
                if self._products(need, steps) < self._products(before, steps - CHECK_EVERY):
                    return False  # the last steps paid for themselves: so may the next
        return True

    def _products(self, need: Need, steps: int) -> int:
        probes = self._probes(need)
        return probes * steps + need.singles(probes)


def _stretched(found: Coefficients) -> Coefficients:
    return replace(found, alphas=2.0 * found.alphas, betas=2.0 * found.betas, residuals=2.0 * found.residuals)


def _noise(needs: Mapping[str, Need]) -> str:
    parts = [f"{need.floor:.2g} of {name}" for name, need in needs.items() if need.hopeless]
    return f"the noise of the products alone is an error of {' and '.join(parts)}" if parts else ""


def _checked(name: str, value: Any, alone: bool) -> float:
    """Return one target as a float.

    Raises:
        ConfigurationError: It is none.
    """
    shown = f"tolerance={value!r}" if alone else f"tolerance={{{name!r}: {value!r}}}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise ConfigurationError(f"{shown} must be a number, or numbers by the names of targets.")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not 0.0 < number < math.inf:
        raise ConfigurationError(f"{shown} must be a finite number above 0; {DEFAULT_TOLERANCE} is the usual one.")
    if number < _SMALLEST:
        raise ConfigurationError(f"{shown} is below what float64 can tell, {_SMALLEST:g}; try {DEFAULT_TOLERANCE}.")
    if name in _FRACTIONS and number >= 1.0:
        raise ConfigurationError(f"{shown} must be below 1, which any spectrum meets; try {DEFAULT_TOLERANCE}.")
    return number
