"""The largest and the smallest eigenvalues of a block, and how many stand apart from the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.ritz import BoolArray
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import student

_ENOUGH_STEPS = 20  # beyond those of outliers, from which on the edge lay within the residual in 99.9 % of streams
_RANK = 0.003  # residual over gap, below which nothing is missed further out; ten times that is enough for weights
_CHANCE = 0.05
_APART = 6.0  # standard deviations of the bulk from its mean
_ROUNDS = 100  # of leaving out what stands apart; each leaves out something, and a handful do
_BULK = 37  # of so many values none is more than six standard deviations, the root of one less than that, from the mean
_TAILED = 3  # nodes of a stream that tell the fourth moment of what they stand for, and so long tails from none


@dataclass(frozen=True)
class _Outermost:
    """The Ritz values of one probe from outside to inside, negated on the lower side; ``known`` are accepted."""

    nodes: FloatArray
    residuals: FloatArray
    floor: float
    known: int
    known_behind: int
    steps: int


def largest(reading: Reading, k: int) -> Estimate:
    """Find the k-th largest eigenvalue.

    A Ritz value lies no further out than the eigenvalue of its rank, and some eigenvalue lies within its residual: the
    bar reaches from the one to the other, and by the error of a product beyond both. Whether that eigenvalue has the
    same rank is known where k values are accepted as single eigenvalues on that side, and nothing speaks against it;
    where something does, the bar reaches to the largest one, as that may be there k times. Exactly repeated eigenvalues
    that single streams cannot show are counted once. For k = 1, where none is accepted and the steps are few, the bar
    is the bound that holds for 95 % of the probes whatever the spectrum is (Kuczynski and
    Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992).

    Raises:
        ConfigurationError: k is no positive integer, or k values are not accepted on that side.
    """
    return _outermost(reading, k, 1)


def smallest(reading: Reading, k: int) -> Estimate:
    """Find the k-th smallest eigenvalue; as `largest`, whose errors it has."""
    found = _outermost(reading, k, -1)
    return Estimate(-found.value, found.stderr, -found.high, -found.low, found.reading)


def of_nodes(nodes: FloatArray, steps: NDArray[np.int64], k: int, sign: int) -> Estimate:
    """Return the k-th node from outside of the probe where it lies furthest out, without a bar.

    Args:
        nodes: Of all probes, (probes, m).
        steps: How many each of them has, (probes,).
        k: The rank.
        sign: 1 for the largest, -1 for the smallest.

    Raises:
        ConfigurationError: k is no rank of a node.
    """
    check_rank(k, int(steps.max()))
    found = [np.sort(sign * row[:count])[-k] for row, count in zip(nodes, steps, strict=True) if k <= count]
    return Estimate(sign * float(max(found)), math.nan)


def outliers(reading: Reading) -> Estimate:
    """Count the eigenvalues that lie more than six standard deviations of the bulk from its mean.

    The bulk is what is left when such eigenvalues are left out again and again, so that their number is a property of
    the spectrum alone; a normal, a semicircular or a Marchenko-Pastur bulk has none. The bar counts eigenvalues whose
    side cannot be told, because they or the border are not known well enough: what is left out first moves the border
    for all that follows. Where a stream sees the bulk as one or two nodes, what it is made of, and whether leaving out
    ends there, is not known: the bar reaches to all but the 37 that are left at least. Where something speaks against
    the values taken as single, it holds the count without them.
    """
    found = _counted(reading, reading.variance_reduced)
    if not reading.suspected:
        return found
    other = _counted(reading, reading.gauss)
    return replace(found, low=min(found.low, other.low), high=max(found.high, other.high))


def _counted(reading: Reading, rule: Quadrature) -> Estimate:
    floor = float(reading.ritz.floor.max())
    n, d, probes = rule.numel, float(rule.free.mean()), len(rule.free)
    blur = 0.0 if reading.exact else 0.5 * student(math.inf) * _relative_scatter(rule, _inside(rule, _APART, floor))
    ends = []
    for side in (0, -1, 1):  # the last one leaves out most
        reach = _reach_of_nodes(rule) if side > 0 else np.zeros_like(rule.nodes)
        bulk = _inside(rule, _APART * (1.0 - side * blur), floor, reach)
        outside = (bulk == 0.0) & (rule.weights > 0.0)
        free = rule.weights[outside & ~rule.accepted]
        value, known = (n * float(rule.weights[mask].sum()) for mask in (outside, outside & rule.accepted))
        stderr = half = 0.0
        if free.size:
            stderr = math.hypot(math.sqrt(2.0 * n * float(free.sum()) * d / (d + 2.0) / probes), 0.5)
            # Of eigenvalues known by the mass of free nodes only, one node's share may lie on this side of the border.
            half = student(math.inf) * stderr + (n * float(free.max()) * probes if side <= 0 else 0.0)
        ends.append(Estimate(value, stderr, max(value - half, known), value + half))
    low, high = min(end.low for end in ends), max(end.high for end in ends)
    if not _ends_there(reading, rule, bulk > 0.0):
        high = max(high, n - _BULK)
    return replace(ends[0], low=low, high=high, reading="exact" if reading.exact else "vr")


def _ends_there(reading: Reading, rule: Quadrature, bulk: BoolArray) -> bool:
    """Say whether every stream shows that nothing in the bulk stands apart from the rest of it.

    So many nodes do as tell the fourth moment: long tails would make it large, and the outer ones of these light. So
    do nodes that leave no residual, which stand for one eigenvalue each, however often repeated.
    """
    pairs = reading.ritz
    blurred = ~(pairs.residuals <= pairs.floor)[pairs.used] & ~rule.accepted & bulk
    seen, open_ends = (np.bincount(rule.probe[mask], minlength=len(rule.free)) for mask in (bulk, blurred))
    return bool(((seen >= _TAILED) | (open_ends == 0)).all())


def check_rank(k: int, most: int) -> None:
    """Raise ConfigurationError unless k is the rank of one of ``most`` values."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise ConfigurationError(f"k must be an integer from 1 to {most}, not {k!r}; 1 is the outermost eigenvalue.")


def _outermost(reading: Reading, k: int, sign: int) -> Estimate:
    check_rank(k, reading.found.numel)
    probes = list(_from_outside(reading, sign))
    known = [probe for probe in probes if probe.known >= k]
    if not known and k > 1:
        most, steps = max(probe.known for probe in probes), int(reading.found.steps.max())
        raise ConfigurationError(
            f"Only {most} of the {'largest' if sign > 0 else 'smallest'} eigenvalues can be told apart after {steps} "
            f"steps, too few for k={k}; take more steps, or ask for "
            f"{f'k of at most {most}' if most > 1 else 'k=1, which has a bar always'}."
        )
    if known:
        best = min(known, key=lambda probe: float(probe.residuals[k - 1]))
        outer = best.nodes[0] - best.nodes[k - 1] if reading.suspected else 0.0  # which may be there k times
        reach = 0.0 if reading.exact else float(outer + best.residuals[0 if reading.suspected else k - 1])
    else:
        best = max(probes, key=lambda probe: float(probe.nodes[0]))
        reach = _reach(reading, best)
    value = float(best.nodes[k - 1])
    kind = "exact" if reading.exact else "ritz"
    return Estimate(value, math.nan, value - best.floor, value + reach + best.floor, kind)


def _from_outside(reading: Reading, sign: int) -> Iterator[_Outermost]:
    pairs = reading.ritz
    for row, steps in enumerate(reading.found.steps):
        outwards = slice(steps - 1, None, -1) if sign > 0 else slice(steps)
        taken = reading.accepted[row, outwards]
        sure = taken & (reading.exact | (pairs.residuals[row, outwards] <= _RANK * pairs.gaps[row, outwards]))
        yield _Outermost(
            nodes=sign * pairs.nodes[row, outwards],
            residuals=pairs.residuals[row, outwards],
            floor=float(pairs.floor[row, 0]),
            known=int(np.logical_and.accumulate(sure).sum()),
            known_behind=int(np.logical_and.accumulate(taken[::-1]).sum()),
            steps=int(steps),
        )


def _reach(reading: Reading, probe: _Outermost) -> float:
    """Bound how far the outermost eigenvalue lies beyond a Ritz value that is not accepted."""
    residual = float(probe.residuals[0])
    if residual <= probe.floor:  # the Krylov space is exhausted
        return 0.0
    within = math.log(1.648 * math.sqrt(reading.found.numel) / _CHANCE)
    prior = math.inf
    for j in range(probe.known_behind + 1):  # polynomials may spend a degree on each of the known values
        share = (within / (2 * (probe.steps - j) - 1)) ** 2
        if share < 0.5:  # both ends lie that far out
            prior = min(prior, share / (1.0 - 2.0 * share) * float(probe.nodes[0] - probe.nodes[-1 - j]))
    return min(prior, residual) if probe.steps - probe.known_behind >= _ENOUGH_STEPS else prior


def _inside(rule: Quadrature, apart: float, floor: float, reach: FloatArray | None = None) -> FloatArray:
    """Return the weights of the nodes that do not stand apart, and zeros for the others.

    Args:
        rule: The quadrature.
        apart: How many standard deviations of the bulk are apart from its mean.
        floor: How much more than these.
        reach: How much further out than a node its mass may lie, shape (N,).
    """
    share, further = rule.weights, 0.0 if reach is None else reach
    for _ in range(_ROUNDS):
        mean, deviation = _moments(rule, share)
        inside = np.where(np.abs(rule.nodes - mean) + further <= apart * deviation + floor, share, 0.0)
        if (inside == share).all() or not inside.any():
            break
        share = inside
    return share


def _moments(rule: Quadrature, share: FloatArray) -> tuple[float, float]:
    """Return mean and standard deviation of a share of the nodes."""
    total = share.sum()
    mean = float(share @ rule.nodes / total)
    return mean, math.sqrt(float(share @ (rule.nodes - mean) ** 2 / total))


def _reach_of_nodes(rule: Quadrature) -> FloatArray:
    """Return how much further out the mass of every free node may lie: half of the distance to the nearest other one.

    Where nodes get rarer outwards that is the one further in; the next one further out may be no part of this mass.
    """
    reach = np.zeros_like(rule.nodes)
    for probe in range(len(rule.free)):
        own = np.flatnonzero((rule.probe == probe) & ~rule.accepted)
        if own.size > 1:
            gaps = np.diff(rule.nodes[own], prepend=-np.inf, append=np.inf)
            reach[own] = 0.5 * np.minimum(gaps[:-1], gaps[1:])
    return reach


def _relative_scatter(rule: Quadrature, share: FloatArray) -> float:
    """Return the relative standard error of the bulk's variance."""
    d, probes = float(rule.free.mean()), len(rule.free)
    mean, deviation = _moments(rule, share)
    fourth = float(share @ (rule.nodes - mean) ** 4 / share.sum())
    spread = fourth / deviation**4 - 1.0 if deviation > 0.0 else 0.0
    return math.sqrt(2.0 * max(spread, 0.0) / ((d + 2.0) * probes))
