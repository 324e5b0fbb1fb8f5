"""What a quadrature would have been with another probe: its free weights drawn again, always the same way."""

from __future__ import annotations

import hashlib

import numpy as np

from hvp_engine.results.reading import Quadrature
from hvp_engine.results.smoothing import FloatArray

RESAMPLINGS = 12
"""How often weights are drawn again: enough for a standard deviation, and cheap."""


def resampled_weights(rule: Quadrature, name: str) -> FloatArray:
    """Draw the weights of the nodes that are not accepted again, as another probe would have found them.

    The part of a probe that the accepted eigenvectors leave is uniform on a sphere of d dimensions. A node of share w
    stands for d w of them, so the shares of all nodes are Dirichlet distributed with parameters d w / 2.

    Args:
        rule: The quadrature.
        name: Name of the block, which is the seed: other blocks, and their order, change nothing.

    Returns:
        Weights, float64 of shape (RESAMPLINGS, N); those of accepted nodes are the rule's.
    """
    digest = hashlib.blake2b(f"resampled\0{name}".encode(), digest_size=16).digest()
    # RandomState draws the same numbers in every version of numpy, a Generator does not promise to.
    random = np.random.RandomState(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
    weights = np.tile(rule.weights, (RESAMPLINGS, 1))
    for probe, free in enumerate(rule.free):
        own = (rule.probe == probe) & ~rule.accepted
        mass = float(rule.weights[own].sum())
        if mass > 0.0:
            drawn = random.standard_gamma(np.maximum(0.5 * free * rule.weights[own] / mass, 1e-300), (RESAMPLINGS, int(own.sum())))
            weights[:, own] = drawn * (mass / np.maximum(drawn.sum(axis=1, keepdims=True), 1e-300))
    return weights
