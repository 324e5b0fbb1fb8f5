"""Which Ritz values are single eigenvalues, and what speaks against it.

Taken as one eigenvalue is a Ritz value whose residual is small against the gap to its neighbours, whose weight is that
of one eigenvector, and beyond which every other one is taken too. One stream cannot tell a repeated eigenvalue from a
single one but by its weight, so the weights are tested together, and streams against each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.ritz import BoolArray, Ritz
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import excess

_RESIDUAL = 0.03  # of the gap; four times larger takes bulk for eigenvalues, four times smaller changes little
_HEAVIEST = 25.0  # n w is chi-square with one degree of freedom for one eigenvector: beyond with chance 6e-7
_UNLIKELY = 3.0  # standard deviations of a normal, at which weights are too heavy for the eigenvalues they stand for
_NO_MASS_LEFT = 1e-6  # share of the weight that the eigenvalues not taken should have, below which they have none


def candidates(found: Coefficients, pairs: Ritz) -> BoolArray:
    """Say which Ritz values may be taken as one eigenvalue each before their weights are compared, shape (probes, m).

    None is where the Lanczos vectors were not kept orthogonal: converged values then come back as copies of themselves,
    of which none has a weight that could be trusted.
    """
    if not found.reorthogonalized:
        return np.zeros_like(pairs.used)
    light = found.numel * pairs.weights <= _HEAVIEST
    taken = _contiguous(pairs.used & (pairs.residuals <= _RESIDUAL * pairs.gaps) & light, pairs.used)
    return _contiguous(taken & ~_seen_by_others(found.numel, pairs, taken)[0], pairs.used)


def accepted(found: Coefficients, pairs: Ritz, taken: BoolArray) -> BoolArray:
    """Say which of the candidates have the weights of as many single eigenvalues, shape (probes, m)."""
    taken = _contiguous(taken & ~_seen_by_others(found.numel, pairs, taken)[1], pairs.used)
    return _with_room(found.numel, pairs, _contiguous(taken & ~_heavy_together(found.numel, pairs, taken), pairs.used))


def heaviness(numel: int, pairs: Ritz, taken: BoolArray) -> float:
    """Say by how many standard deviations all values taken are too heavy for as many single eigenvalues."""
    if not taken.any():
        return 0.0
    mass, count = np.where(taken, pairs.weights, 0.0).sum(axis=1, keepdims=True), taken.sum(axis=1, keepdims=True)
    return float(_excess_of_streams(numel, mass, count)[0])


def clusters(pairs: Ritz, taken: BoolArray) -> tuple[BoolArray, FloatArray]:
    """Find Ritz values that have converged and are no single eigenvalue: repeated ones, of rank-deficient blocks say.

    Returns:
        Which they are, and the distance of every Ritz value to the next one that rounding does not make equal to it.
    """
    gaps = np.zeros_like(pairs.gaps)
    for row, nodes in enumerate(pairs.nodes):
        own = nodes[pairs.used[row]]
        edges = np.concatenate(([-np.inf], own, [np.inf]))
        before = edges[np.searchsorted(own, own - pairs.floor[row])]
        after = edges[np.searchsorted(own, own + pairs.floor[row], side="right") + 1]
        gaps[row, : own.size] = np.minimum(own - before, after - own)
    gaps[np.isinf(gaps)] = 0.0
    return np.asarray(pairs.used & ~taken & (pairs.residuals <= _RESIDUAL * gaps)), gaps


def _contiguous(taken: BoolArray, used: BoolArray) -> BoolArray:
    """Keep those beyond which every other one is taken too, on one of the two sides."""
    held = taken | ~used
    below = np.logical_and.accumulate(held, axis=1)
    above = np.logical_and.accumulate(held[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((below | above) & used)


def _seen_by_others(numel: int, pairs: Ritz, taken: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Say which values some other stream sees as two, and which are too heavy in all of them to be one."""
    double, repeated = np.zeros_like(taken), np.zeros_like(taken)
    if len(taken) == 1 or not taken.any():
        return double, repeated
    values, weights, half = pairs.nodes[taken], pairs.weights[taken], 0.5 * pairs.gaps[taken]
    mass, seen, twice = np.zeros(values.size), np.zeros(values.size), np.zeros(values.size, dtype=np.bool_)
    for own, other, mine in zip(pairs.nodes, pairs.weights, taken, strict=True):
        nodes, shares = own[mine], other[mine]
        first, last = np.searchsorted(nodes, values - half), np.searchsorted(nodes, values + half, side="right")
        one = last - first == 1
        mass[one] += shares[first[one]]
        seen += one
        twice |= last - first > 1
    alone = np.maximum(seen, 1.0)
    heavy = excess(np.where(seen > 0, mass / alone, weights), alone, (numel - 1.0) * alone) > _UNLIKELY
    double[taken], repeated[taken] = twice, heavy & (seen > 1)
    return double, repeated


def _heavy_together(numel: int, pairs: Ritz, taken: BoolArray) -> BoolArray:
    """Say which values are too heavy for as many single eigenvalues, with all that are further in or further out.

    They are compared by their ranks, on either side by itself, in every stream alone and in all of them together. Too
    heavy down to some rank is everything from there inwards; too heavy down from some rank is all of the side.
    """
    wrong = np.zeros_like(taken)
    for side in (slice(None), slice(None, None, -1)):
        run = np.logical_and.accumulate((taken | ~pairs.used)[:, side], axis=1) & taken[:, side]
        by_rank = np.argsort(~run, axis=1, kind="stable")
        inside = np.take_along_axis(run, by_rank, axis=1)
        weights = np.where(inside, np.take_along_axis(pairs.weights[:, side], by_rank, axis=1), 0.0)
        inwards = _too_heavy(numel, weights.cumsum(axis=1), inside.cumsum(axis=1)) & inside
        mass, count = (part[:, ::-1].cumsum(axis=1)[:, ::-1] for part in (weights, inside))
        outwards = _too_heavy(numel, mass, count) & inside
        refused = inside & (np.logical_or.accumulate(inwards, axis=1) | outwards.any(axis=1, keepdims=True))
        marked = np.zeros_like(taken)
        np.put_along_axis(marked, by_rank, refused, axis=1)
        wrong |= marked[:, side]
    return wrong


def _too_heavy(numel: int, mass: FloatArray, count: NDArray[np.int64]) -> BoolArray:
    """Say where sums of several weights are unlikely, in a stream (rows) or in all of them."""
    alone = (count > 1) & (excess(mass, count.astype(np.float64), numel - count.astype(np.float64)) > _UNLIKELY)
    if len(mass) == 1:
        return np.asarray(alone)
    return np.asarray(alone | (_excess_of_streams(numel, mass, count) > _UNLIKELY))


def _excess_of_streams(numel: int, mass: FloatArray, count: NDArray[np.int64]) -> FloatArray:
    """Compare the weights on some directions of every stream (rows) with those of streams drawn from the sphere."""
    inside = count.sum(axis=0).astype(np.float64)
    return excess(mass.mean(axis=0), inside, len(mass) * numel - inside)


def _with_room(numel: int, pairs: Ritz, taken: BoolArray) -> BoolArray:
    """Take none in a probe whose values taken leave no weight for the eigenvalues that are left."""
    left = numel - taken.sum(axis=1)
    room = 1.0 - np.where(taken, pairs.weights, 0.0).sum(axis=1)
    return np.asarray(taken & (room > _NO_MASS_LEFT * left / numel)[:, None])
