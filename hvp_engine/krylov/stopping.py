"""When a block knows enough: a pure rule from Lanczos coefficients to what the targets still need.

Everything here is a function of what the streams found, so a job that resumes decides what it decided before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.needs import Need, distribution
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.reading import Reading
from hvp_engine.results.smoothing import FloatArray

FIRST_CHECK, CHECK_EVERY = 10, 5  # steps before the first check, and from one check to the next
DEFAULT_TOLERANCE = 0.02
_FRACTIONS = ("w1", "js")  # targets that say nothing at 1 and above
_ZERO = 1e-12  # a block so much smaller than the largest one has no curvature but rounding


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
        reason: What is out of reach, and why; empty where nothing is.
    """

    reached: bool
    steps_suffice: bool
    probes: int
    singles: int
    errors: Mapping[str, float]
    reason: str = ""


def judge(
    blocks: Mapping[str, Coefficients],
    targets: Targets,
    singles: Mapping[str, FloatArray] | None = None,
    *,
    asked: Collection[str] | None = None,
    most_probes: int | None = None,
) -> dict[str, Verdict]:
    """Say for every block whether its targets are met, and what they need where they are not.

    Args:
        blocks: What the streams of each block have found so far.
        targets: What is asked for.
        singles: Single products of the blocks that have some: rows as in ``Spectrum.singles``.
        asked: The blocks to judge; None for all.
        most_probes: The most streams that a block may have: one that would need more is not made to take steps that
            these could not use.
    """
    scale = max((float(abs(found.alphas).max()) for found in blocks.values()), default=0.0)
    chosen = blocks if asked is None else asked
    return {name: _judge_block(blocks[name], targets, scale, most_probes or math.inf) for name in chosen}


def _judge_block(found: Coefficients, targets: Targets, scale: float, most: float) -> Verdict:
    reading = Reading(found)
    probes = len(found.steps)
    if reading.exact or float(abs(reading.ritz.nodes).max()) <= _ZERO * scale:
        return Verdict(True, True, probes, 0, dict.fromkeys(targets.record(), 0.0))
    needs = {}
    if targets.w1 is not None:
        needs["w1"] = distribution(reading, targets.w1)
    steps = int(found.steps.max())
    exhausted = bool((found.residuals == 0.0).all())
    errors = {name: need.error(probes) for name, need in needs.items()}
    return Verdict(
        reached=all(errors[name] <= need.allowed for name, need in needs.items()),
        steps_suffice=exhausted or all(need.steps_suffice(steps, CHECK_EVERY, most) for need in needs.values()),
        probes=max([probes, *(need.probes(most) for need in needs.values())]),
        singles=0,
        errors=errors,
        reason="; ".join(filter(None, (_reason(name, need, most) for name, need in needs.items()))),
    )


def _reason(name: str, need: Need, most: float) -> str:
    if need.hopeless:
        return f"{name}: the noise of the products alone is an error of {need.floor:.2g}"
    if need.fewest > most:
        return f"{name}: {need.fewest:,} probes would be needed"
    return ""


def _checked(name: str, value: Any, alone: bool) -> float:
    """Return one target as a float.

    Raises:
        ConfigurationError: It is none.
    """
    shown = f"tolerance={value!r}" if alone else f"tolerance={{{name!r}: {value!r}}}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise ConfigurationError(f"{shown} must be a number, or numbers by the names of targets.")
    number = float(value)
    if not 0.0 < number < math.inf:
        raise ConfigurationError(f"{shown} must be a finite number above 0; {DEFAULT_TOLERANCE} is the usual one.")
    if name in _FRACTIONS and number >= 1.0:
        raise ConfigurationError(f"{shown} must be below 1, which any spectrum meets; try {DEFAULT_TOLERANCE}.")
    return number
