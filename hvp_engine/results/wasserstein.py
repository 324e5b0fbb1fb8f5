"""How far a block's distribution of eigenvalues is off, in Wasserstein-1 distance, and distances with such bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hvp_engine.results.estimate import MatrixEstimate
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.smooth_cdf import step_cdf

_BETWEEN = 0.75  # of what bounds the error of the curve: the step function, averaged in, takes off a quarter or more
# The integral of |G|, G a Gaussian process, is below its mean and this many standard deviations in 95 %: by 1.93 where
# all of G goes up and down together, by 1.96 for a Brownian bridge. Few outliers are not Gaussian: twice the mean at
# least.
_OF_INTEGRALS, _OF_MEANS = 1.95, 2.0


def wasserstein_estimate(readings: Sequence[Reading]) -> MatrixEstimate:
    """Estimate the Wasserstein-1 distances between all pairs of blocks, by their smooth distribution functions.

    By the triangle inequality a distance is off by no more than both blocks are; their chances are independent.
    """
    count = len(readings)
    value = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            value[i, j] = value[j, i] = readings[i].smooth.distance(readings[j].smooth)
    lasting = np.array([left_to_change(reading) + _moved_by_noise(reading) for reading in readings])
    chance = np.array([_chance(reading) for reading in readings])
    half = lasting[:, None] + lasting + np.hypot(chance[:, None], chance)
    np.fill_diagonal(half, 0.0)
    return MatrixEstimate(value, np.maximum(value - half, 0.0), value + half, "smooth")


def distance_from_truth(reading: Reading) -> float:
    """Return how far, in 95 %, the smooth distribution function is from that of the eigenvalues, in their unit."""
    return math.hypot(left_to_change(reading), _chance(reading)) + _moved_by_noise(reading)


def left_to_change(reading: Reading) -> float:
    """Return what more steps would change of the distribution, in Wasserstein-1 distance.

    Two things tell how far the curve is off. It and the step function of the Gauss nodes are two guesses between the
    same bounds, and are further apart than the curve is from the truth; too far where the spectrum is smooth. There the
    steps before tell: what is left is a multiple of what they changed. They are deceived where a tail is found in
    pieces and nothing changes for a while. So the smaller one counts, and three quarters of it, as the distribution
    function lies between the curve and the averaged step function, which err to opposite sides. Both are blind for how
    wide a cluster is, a node that stands for many eigenvalues: its residual is their deviation from it.

    Streams whose Krylov space is exhausted have nothing left to change.
    """
    found = reading.found
    live = np.isnan(found.residuals) | (found.residuals > 0.0)
    if reading.exact or not live.any():
        return 0.0
    now = reading
    if not live.all():
        arrays = {name: getattr(found, name)[live] for name in ("alphas", "betas", "steps", "residuals")}
        found = replace(found, **arrays)
        now = Reading(found)
    if not now.earlier:  # there is but one step; all is within a standard deviation, which it leaves
        return float(live.mean()) * float(found.residuals.mean())
    rule = now.variance_reduced
    apart = now.curve.distance(step_cdf(rule.nodes, rule.weights))
    changed = max(times * now.curve.distance(before.curve) for times, before in now.earlier)
    return float(live.mean()) * (_BETWEEN * min(apart, changed) + now.width_of_clusters)


def chance_of_distance(rule: Quadrature) -> float:
    """Return what 95 % of streams are at most off in Wasserstein-1 distance, by chance alone.

    The share of the free eigenvalues below x that a stream sees is off by a Brownian bridge G(F(x)), nearly, with
    variance ``2 / (d + 2)``; the distance is the integral of ``|G|``, whose mean and variance are known. Every other
    node is a Ritz value, beyond which there is an eigenvalue for each of those further out, however small the weights
    that these have by chance: where most eigenvalues of a tail happen to weigh little, its chance is no smaller.
    """
    total = 0.0
    for probe, free in enumerate(rule.free):
        own = (rule.probe == probe) & ~rule.accepted
        if own.sum() < 2:
            continue
        nodes, weights = rule.nodes[own], rule.weights[own]
        below, width = (weights.cumsum() / weights.sum())[:-1], np.diff(nodes)
        rank = np.arange(1, nodes.size)
        below = np.clip(below, rank // 2 / free, 1.0 - (nodes.size - rank) // 2 / free)
        deviation = np.sqrt(np.clip(below * (1.0 - below), 0.0, None))
        scale = deviation * width
        above = np.where(below < 1.0, 1.0 - below, 1.0)
        odds = np.sqrt(np.clip(below / above, 0.0, None))
        together = np.minimum(odds[:, None], odds) / np.maximum(np.maximum(odds[:, None], odds), 1e-300)
        covariance = np.sqrt(1.0 - together**2) + together * np.arcsin(together) - 1.0
        mean, variance = math.sqrt(2.0 / math.pi) * scale.sum(), 2.0 / math.pi * (scale @ covariance @ scale)
        share = float(free) / rule.numel
        most = max(_OF_MEANS * mean, mean + _OF_INTEGRALS * math.sqrt(max(variance, 0.0)))
        total += share * math.sqrt(2.0 / (free + 2.0)) * most
    return total / len(rule.free)


def _chance(reading: Reading) -> float:
    return 0.0 if reading.exact else chance_of_distance(reading.averaged) / math.sqrt(len(reading.found.steps))


def _moved_by_noise(reading: Reading) -> float:
    """Return how far noise of the products moves eigenvalues: no more than its root of squares, on average.

    (Hoffman and Wielandt, "The variation of the spectrum of a normal matrix", Duke Math. J. 20, 1953.)
    """
    rule = reading.variance_reduced
    return reading.found.noise * math.sqrt(float(rule.weights @ rule.nodes**2))
