"""When a block knows enough: a pure rule from Lanczos coefficients to what the targets still need.

Everything here is a function of what the streams found, so a job that resumes decides what it decided before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature

if TYPE_CHECKING:
    from hvp_engine.results.coefficients import Coefficients

FloatArray = NDArray[np.float64]

FIRST_CHECK, CHECK_EVERY = 10, 5  # steps before the first check, and from one check to the next
DEFAULT_TOLERANCE = 0.02
_FRACTIONS = ("w1", "js")  # targets that say nothing at 1 and above


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
        reason: Why more work would not help, where that is so; empty elsewhere.
    """

    reached: bool
    steps_suffice: bool
    probes: int
    singles: int
    errors: Mapping[str, float]
    reason: str = ""


def judge(
    blocks: Mapping[str, Coefficients], targets: Targets, singles: Mapping[str, FloatArray] | None = None
) -> dict[str, Verdict]:
    """Say for every block whether its targets are met, and what they need where they are not.

    Args:
        blocks: What the streams of each block have found so far.
        targets: What is asked for.
        singles: Single products of the blocks that have some: rows as in ``Spectrum.singles``.
    """
    return {name: _judge_block(coefficients, targets) for name, coefficients in blocks.items()}


def _judge_block(found: Coefficients, targets: Targets) -> Verdict:
    tolerance = targets.w1 or targets.js or targets.trace or targets.density or DEFAULT_TOLERANCE
    nodes, weights = tridiagonal_quadrature(found.alphas, found.betas, found.steps)
    half = np.maximum(found.steps // 2, 1)
    halved = tridiagonal_quadrature(found.alphas, found.betas, half)
    mean = float((nodes * weights).sum() / len(nodes))
    sd = math.sqrt(float((weights * (nodes - mean) ** 2).sum()) / len(nodes))
    if sd <= 1e-12 * float(abs(nodes).max()):
        return Verdict(True, True, len(nodes), 0, {"w1": 0.0})
    krylov = max(
        _w1(nodes[i], weights[i], halved[0][i], halved[1][i]) if found.residuals[i] != 0.0 else 0.0
        for i in range(len(nodes))
    )
    values = np.sort(nodes.ravel())
    below = weights.ravel()[np.argsort(nodes.ravel())].cumsum()[:-1] / len(nodes)
    spread = float((np.sqrt(np.clip(below * (1.0 - below), 0.0, None)) * np.diff(values)).sum())
    probe = math.sqrt(2.0 / math.pi) * math.sqrt(2.0 / (found.numel + 2)) * spread
    if found.steps.min() >= found.numel:
        krylov = probe = 0.0
    allowed = tolerance * sd
    error = math.hypot(krylov, 2.0 * probe / math.sqrt(len(nodes)))
    steps_suffice = krylov <= 0.7 * allowed
    left = math.sqrt(max(allowed**2 - krylov**2, 0.5 * allowed**2))
    needed = max(len(nodes), math.ceil((2.0 * probe / left) ** 2))
    return Verdict(error <= allowed, steps_suffice, needed, 0, {"w1": error / sd})


def _w1(x: FloatArray, p: FloatArray, y: FloatArray, q: FloatArray) -> float:
    """Compute the Wasserstein-1 distance of two discrete distributions."""
    points = np.concatenate((x, y))
    order = np.argsort(points)
    difference = np.concatenate((p, -q))[order].cumsum()[:-1]
    return float((abs(difference) * np.diff(points[order])).sum())


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
