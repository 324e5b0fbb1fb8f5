"""What one block's Lanczos coefficients say about its spectrum: quadratures that differ in how they read the same T.

A Gauss quadrature gives an outlier the squared component of a random vector, though one that has converged is known to
be a single eigenvalue of n. The variance-reduced reading gives it 1 / n, and the rest of the mass to the other nodes:
given the eigenvectors of the values taken, the rest of the probe is uniform on the sphere of their complement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results import acceptance, deflation
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.ritz import BoolArray, Ritz, averaged_rule, ritz
from hvp_engine.results.smooth_cdf import SmoothCdf, mean_of, mixture, smooth_cdf, step_cdf
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import Function, traces

Kind = Literal["gauss", "vr", "averaged", "exact"]
ReadingName = Literal["auto", "gauss"]

# Standard deviations between a stream and its single products, at which its reading is doubted; and at which these, or
# the weights of what is taken, call for bars that hold without it too.
_DOUBT, _SUSPICION = 3.0, 2.33
_PRODUCT = 1e-5  # relative error of a product in single precision, beyond which nothing contradicts anything
_STREAM_COUNTS = 4.0  # single products whose scatter the free part of a stream is worth

# Where an error falls like one over the steps, what is left to change is what was changed since half of them, or three
# times that since three quarters. Either may be small by chance: the larger one counts, the former twice.
_CHANGES = ((0.5, 2.0), (0.75, 3.0))
_STAIRS = 0.5  # most that the step function counts in the distribution function


def is_gauss(reading: str) -> bool:
    """Say whether the plain Gauss reading is asked for, or the best one of each quantity.

    Raises:
        ConfigurationError: There is no such reading.
    """
    if reading not in get_args(ReadingName):
        raise ConfigurationError(f"reading={reading!r} is neither 'auto' nor 'gauss'.")
    return reading == "gauss"


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Weighted atoms that stand for the eigenvalues of a block, of all its probes together.

    Attributes:
        nodes: The atoms, ascending within a probe, float64 of shape (N,).
        weights: Their weights, which sum to 1 over all probes, shape (N,).
        accepted: Whether an atom is known to be one eigenvalue, shape (N,).
        probe: Which probe an atom comes from, int64 of shape (N,).
        numel: Number of eigenvalues, n.
        free: How many of them are not among the accepted ones, for each probe, int64 of shape (probes,).
        kind: ``"gauss"``, ``"vr"``, ``"averaged"``, or ``"exact"`` where every eigenvalue is known.
    """

    nodes: FloatArray
    weights: FloatArray
    accepted: BoolArray
    probe: NDArray[np.int64]
    numel: int
    free: NDArray[np.int64]
    kind: Kind


class Reading:
    """The readings of one block's coefficients, each computed when it is first asked for.

    Attributes:
        found: The coefficients that are read: those given, or, where a probe knows every eigenvalue, that probe
            alone; a probe whose last residual is unknown is read one step short.
        exact: Whether every eigenvalue is known.
    """

    def __init__(self, found: Coefficients, singles: FloatArray | None = None, deflated: int = 0) -> None:
        """Read coefficients.

        Args:
            found: The coefficients.
            singles: Single products, as in ``Spectrum.singles``; None for none.
            deflated: How many Lanczos vectors of probe 0 they are orthogonal to.
        """
        complete = found.steps >= found.numel
        self.exact = bool(complete.any())
        self.found = _only(found, int(complete.argmax())) if self.exact else _without_unknown_residuals(found)
        self.deflated = None if singles is None else deflation.deflated(found, singles, deflated)

    @cached_property
    def ritz(self) -> Ritz:
        """Ritz values, weights and residuals, shape (probes, m)."""
        return ritz(self.found)

    @cached_property
    def accepted(self) -> BoolArray:
        """Which Ritz values are taken as one eigenvalue each, shape (probes, m)."""
        if self.exact:
            return self.ritz.used.copy()
        return np.zeros_like(self.ritz.used) if self.doubted else self._plausible

    @cached_property
    def doubted(self) -> bool:
        """Whether single products contradict what is taken for single eigenvalues: then none is."""
        return self._contradiction > _DOUBT

    @cached_property
    def suspected(self) -> bool:
        """Whether weights or single products speak against what is taken, so that bars hold what others read too.

        That is where every stream has values that were refused for their weights, and where chance explains what all
        of them weigh, or what single products show beside them, once in a hundred. Few streams with few values say
        little of values that are there twice each: five such pairs are suspected in an eighth of single streams, in
        four of ten of three, and in nine of ten where there are single products. Bars hold the less often without.
        """
        if self.exact:
            return False
        refused = bool((self.candidates != self.accepted).any(axis=1).all())
        heavy = acceptance.heaviness(self.found.numel, self.ritz, self.candidates) > _SUSPICION
        return refused or heavy or self._contradiction > _SUSPICION

    @cached_property
    def _contradiction(self) -> float:
        """By how many standard deviations a stream with its plausible values is off from its single products.

        Were these right, what is left after deflation would scatter no more than the free part of the stream does, and
        those of its vectors that were not taken out.
        """
        single, taken = self.deflated, self._plausible[:1]
        if single is None or not taken.any():
            return 0.0
        n, first = self.found.numel, self._first
        accuracy = max(self.found.noise, _PRODUCT)
        most = 0.0
        rows = deflation.diagonals(self.found, single.vectors)
        for k, seen, row in ((1, single.trace, rows[0]), (2, single.square, rows[1])):
            (value,), (scatter,) = traces(n, first, taken, _power(k))
            (size,), _ = traces(n, first, taken, _power(2 * k))
            chance = scatter * (1.0 + 1.0 / single.products) + 2.0 * float(row @ row) / single.products
            chance += (k * accuracy) ** 2 * size
            if value != seen:
                most = max(most, abs(value - seen) / math.sqrt(chance) if chance > 0.0 else math.inf)
        return most

    @cached_property
    def square_variance(self) -> float:
        """Variance of ``tr H^2`` from single products: by their scatter, and by the free part of the stream.

        A handful of products shows too little of its own scatter.
        """
        single = self.deflated
        assert single is not None
        _, free = traces(self.found.numel, self._first, self.accepted[:1], np.square)
        seen = single.products - 1
        pooled = float(_STREAM_COUNTS * free[0] + seen * single.square_scatter) / (_STREAM_COUNTS + seen)
        return pooled / single.products

    @cached_property
    def earlier(self) -> tuple[tuple[float, Reading], ...]:
        """What the streams said earlier, and times how much of what has changed since then is left to change, at most.

        Empty where no step changes anything, or where there is but one.
        """
        most = int(self.found.steps.max())
        if self.exact or most == 1 or not self.found.residuals.any():
            return ()
        return tuple((times, Reading(self.found.truncated(max(1, int(share * most))))) for share, times in _CHANGES)

    @property
    def half(self) -> Reading | None:
        """What the streams said after half of their steps; None where ``earlier`` is empty."""
        return self.earlier[0][1] if self.earlier else None

    @cached_property
    def candidates(self) -> BoolArray:
        """Which Ritz values would be taken as one eigenvalue each, were it not for their weights, shape (probes, m)."""
        return acceptance.candidates(self.found, self.ritz)

    @cached_property
    def _plausible(self) -> BoolArray:
        return acceptance.accepted(self.found, self.ritz, self.candidates)

    @property
    def _first(self) -> Ritz:
        """The Ritz values of probe 0."""
        pairs, row = self.ritz, slice(1)
        return Ritz(
            pairs.nodes[row],
            pairs.weights[row],
            pairs.residuals[row],
            pairs.gaps[row],
            pairs.used[row],
            pairs.floor[row],
        )

    @property
    def free(self) -> NDArray[np.int64]:
        """How many eigenvalues are not among the accepted ones, shape (probes,)."""
        return np.asarray(self.found.numel - self.accepted.sum(axis=1))

    @cached_property
    def gauss(self) -> Quadrature:
        """Gauss quadrature: nothing is taken as known."""
        pairs = self.ritz
        return self._quadrature(pairs.nodes, pairs.weights, np.zeros_like(pairs.used), pairs.used, "gauss")

    @cached_property
    def variance_reduced(self) -> Quadrature:
        """Gauss nodes, of which every accepted one has weight 1 / n: for moments, traces and norms."""
        pairs = self.ritz
        kind: Kind = "exact" if self.exact else "vr"
        return self._quadrature(pairs.nodes, self._reduced(pairs.weights), self.accepted, pairs.used, kind)

    @cached_property
    def averaged(self) -> Quadrature:
        """Accepted values with weight 1 / n each, and between them the nodes of the averaged Gauss rule: for shapes."""
        if self.exact:
            return self.variance_reduced
        nodes, weights = averaged_rule(self.found)
        low, high = self._borders
        between = (weights > 0.0) & (nodes > low[:, None]) & (nodes < high[:, None])
        shares = np.where(between, weights, 0.0)
        shares *= (self.free / self.found.numel)[:, None] / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
        taken = np.where(self.accepted, 1.0 / self.found.numel, 0.0)
        nodes = np.concatenate((self.ritz.nodes, nodes), axis=1)
        weights = np.concatenate((taken, shares), axis=1)
        accepted = np.concatenate((self.accepted, np.zeros_like(between)), axis=1)
        used = np.concatenate((self.accepted, between), axis=1)
        order = (np.arange(len(nodes))[:, None], np.argsort(nodes, axis=1, kind="stable"))
        nodes, weights, accepted, used = nodes[order], weights[order], accepted[order], used[order]
        return self._quadrature(nodes, weights, accepted, used, "averaged")

    @cached_property
    def smooth(self) -> SmoothCdf:
        """The distribution function between ``stairs`` and ``curve``: for itself and for W1.

        Where tails are long and sparse the curve spreads mass over what is empty, and the stairs gather what is apart:
        they err to opposite sides, and the mean of both is off by less than either one. Where the spectrum is smooth
        the curve is right, which shows in that half of the steps gave the same one.
        """
        if self.half is None or (apart := self.stairs.distance(self.curve)) == 0.0:
            return self.curve
        return mixture(self.stairs, self.curve, min(_STAIRS, self.curve.distance(self.half.curve) / apart))

    @cached_property
    def stairs(self) -> SmoothCdf:
        """The distribution function with all mass at averaged nodes and in clusters."""
        nodes, weights, _ = zip(*self._placed, strict=True)
        return step_cdf(np.concatenate(nodes), np.concatenate(weights))

    @cached_property
    def curve(self) -> SmoothCdf:
        """The distribution function with a smooth part between the atoms that are known."""
        return mean_of([smooth_cdf(*placed) for placed in self._placed])

    @cached_property
    def _placed(self) -> list[tuple[FloatArray, FloatArray, BoolArray]]:
        """The averaged nodes, weights and which of them are atoms, for each probe; a cluster's nodes at its place."""
        rule = self.averaged
        if self.exact:
            return [(rule.nodes, rule.weights, rule.accepted)]
        clusters, gaps = self._clusters
        placed = []
        for probe, mine in enumerate(clusters):
            own = rule.probe == probe
            nodes, atoms, free = rule.nodes[own], rule.accepted[own], ~rule.accepted[own]
            for node, gap in zip(self.ritz.nodes[probe, mine], gaps[probe, mine], strict=True):
                near = (abs(nodes - node) < 0.5 * gap) & free
                nodes, atoms = np.where(near, node, nodes), atoms | near
            placed.append((nodes, rule.weights[own] * len(clusters), atoms))
        return placed

    @property
    def width_of_clusters(self) -> float:
        """The mean distance of the eigenvalues in clusters, all at one place in ``smooth``, from there, at most.

        A cluster's Ritz vector is made of their eigenvectors, so its residual is their standard deviation.
        """
        mine, _ = self._clusters
        pairs = self.ritz
        return float((pairs.weights * pairs.residuals)[mine].sum()) / len(mine)

    @cached_property
    def _clusters(self) -> tuple[BoolArray, FloatArray]:
        return acceptance.clusters(self.ritz, self.accepted)

    @property
    def _borders(self) -> tuple[FloatArray, FloatArray]:
        """Between which points the eigenvalues that are not accepted lie: half way to the next Ritz value."""
        pairs, free = self.ritz, self.ritz.used & ~self.accepted
        row, m = np.arange(len(free)), free.shape[1]
        first, last = free.argmax(axis=1), m - 1 - free[:, ::-1].argmax(axis=1)
        inner = pairs.nodes[row, first], pairs.nodes[row, last]
        low = np.where(first > 0, 0.5 * (pairs.nodes[row, np.maximum(first - 1, 0)] + inner[0]), -np.inf)
        above = pairs.nodes[row, np.minimum(last + 1, m - 1)]
        high = np.where(last + 1 < self.found.steps, 0.5 * (above + inner[1]), np.inf)
        return low, high

    def _reduced(self, weights: FloatArray) -> FloatArray:
        n = self.found.numel
        rest = np.where(self.accepted, 0.0, weights)
        share = (self.free / n)[:, None] / np.maximum(rest.sum(axis=1, keepdims=True), 1e-300)
        return np.asarray(np.where(self.accepted, 1.0 / n, rest * share))

    def _quadrature(
        self, nodes: FloatArray, weights: FloatArray, accepted: BoolArray, used: BoolArray, kind: Kind
    ) -> Quadrature:
        probe = np.broadcast_to(np.arange(len(nodes))[:, None], nodes.shape)[used]
        free = self.found.numel - accepted.sum(axis=1)
        shares = weights[used] / len(nodes)
        return Quadrature(nodes[used], shares, accepted[used], probe, self.found.numel, free, kind)


def _only(found: Coefficients, probe: int) -> Coefficients:
    rows = slice(probe, probe + 1)
    return replace(
        found,
        alphas=found.alphas[rows],
        betas=found.betas[rows],
        steps=found.steps[rows],
        residuals=found.residuals[rows],
    )


def _without_unknown_residuals(found: Coefficients) -> Coefficients:
    """Drop the last step of probes whose beta_m is unknown: then it is that of the step before."""
    unknown = np.isnan(found.residuals)
    if not unknown.any():
        return found
    shorter = unknown & (found.steps > 1)
    steps, residuals = found.steps - shorter, found.residuals.copy()
    residuals[unknown] = np.inf  # after one step nothing is known of what was left
    residuals[shorter] = found.betas[shorter, steps[shorter] - 1]
    alphas, betas = found.alphas.copy(), found.betas.copy()
    alphas[np.arange(alphas.shape[1]) >= steps[:, None]] = 0.0
    betas[np.arange(betas.shape[1]) >= steps[:, None] - 1] = 0.0
    return replace(found, alphas=alphas, betas=betas, steps=steps, residuals=residuals)


def _power(k: int) -> Function:
    return lambda x: np.asarray(x**k)
