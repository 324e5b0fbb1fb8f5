"""Blocks that stop by a tolerance: what they took, and whether their true error is below it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.coverage.matrices import Matrix
from benchmarks.coverage.streams import Streams, spectrum
from hvp_engine.krylov.stopping import CHECK_EVERY, FIRST_CHECK, Ceilings, Targets, Verdict, judge
from hvp_engine.results.smooth_cdf import SmoothCdf
from hvp_engine.results.spectrum import Spectrum

STEPS, PROBES, SINGLES = 100, 10, 4  # the ceilings of a job, and the single products that every block gets


@dataclass(frozen=True)
class Stop:
    """How one block stopped.

    Attributes:
        steps: Of its streams.
        probes: How many these are.
        products: Taken in all.
        reached: Whether the rule says that the tolerance is met.
        error: The true Wasserstein-1 error over the standard deviation of the eigenvalues.
    """

    steps: int
    probes: int
    products: int
    reached: bool
    error: float


def stop(matrix: Matrix, truth: SmoothCdf, found: Streams, rows: list[int], tolerance: float) -> Stop:
    """Let a block stop as a job does: one stream to the length it needs, single products, then further streams."""
    targets = Targets(w1=tolerance)
    steps = FIRST_CHECK
    while True:
        first = spectrum(matrix, found, rows[:1], steps, 0)
        if steps >= STEPS or _judged(first, targets).steps_suffice:
            break
        steps += CHECK_EVERY
    known = spectrum(matrix, found, rows[:1], steps, SINGLES)
    verdict = _judged(known, targets)
    while not verdict.reached and (wanted := min(PROBES, verdict.probes)) > known.probes:
        known = spectrum(matrix, found, rows[:wanted], steps, SINGLES)
        verdict = _judged(known, targets)
    error = known.reading.smooth.distance(truth) / matrix.sd
    return Stop(steps, known.probes, int(known.steps.sum()) + len(known.singles), verdict.reached, error)


def distribution(matrix: Matrix) -> SmoothCdf:
    """Return the true distribution function."""
    below = np.concatenate(([0], matrix.counts.cumsum())) / matrix.numel
    return SmoothCdf(matrix.values, below[:-1], below[1:])


def fixed(matrix: Matrix, truth: SmoothCdf, found: Streams, rows: list[int]) -> float:
    """Return the error of the Gauss quadratures of ten probes of a hundred steps, over the standard deviation."""
    rule = spectrum(matrix, found, rows, STEPS, 0).reading.gauss
    order = np.argsort(rule.nodes)
    nodes, place = np.unique(rule.nodes[order], return_inverse=True)
    below = np.concatenate(([0.0], np.bincount(place, rule.weights[order]).cumsum()))
    return SmoothCdf(nodes, below[:-1] / below[-1], below[1:] / below[-1]).distance(truth) / matrix.sd


def _judged(known: Spectrum, targets: Targets) -> Verdict:
    singles = {known.name: known.singles} if len(known.singles) else None
    return judge({known.name: known.coefficients}, targets, singles, ceilings=Ceilings(PROBES))[known.name]
