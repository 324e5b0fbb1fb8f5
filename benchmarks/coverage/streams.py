"""Lanczos streams and single products on matrices that are known by their eigenvalues, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.coverage.matrices import Floats, Matrix

_BREAKDOWN = 16.0 * float(np.finfo(np.float64).eps)
_TOGETHER = 50  # streams in lock step: their bases then take some hundred megabytes


@dataclass(frozen=True, eq=False)
class Streams:
    """What streams of one matrix found, and what single products beside them need.

    Attributes:
        alphas: (streams, m + 2).
        betas: (streams, m + 2): the last one of a stream is the norm of what was left.
        steps: (streams,) int64: steps until the Krylov space was exhausted, else m + 2.
        inner: (streams, singles, m + 2): products of the single products' vectors g with the stream's basis.
        squares: (streams, singles, 3): g'g, g'Ag and |Ag|^2.
    """

    alphas: Floats
    betas: Floats
    steps: np.ndarray
    inner: Floats
    squares: Floats


def run(matrix: Matrix, streams: int, steps: int, singles: int, seed: int) -> Streams:
    """Run streams for ``steps + 2`` steps, so that residuals and single products are known for every number below."""
    parts = [
        _run(matrix, min(_TOGETHER, streams - start), steps + 2, singles, np.random.default_rng([seed, start]))
        for start in range(0, streams, _TOGETHER)
    ]
    return Streams(*(np.concatenate([getattr(part, name) for part in parts]) for name in Streams.__annotations__))


def _run(matrix: Matrix, streams: int, steps: int, singles: int, rng: np.random.Generator) -> Streams:
    numel, values = len(matrix.values), matrix.values
    start = np.sqrt(rng.chisquare(matrix.counts, (streams, numel)))
    basis = np.zeros((streams, steps, numel))
    basis[:, 0] = start / np.linalg.norm(start, axis=1, keepdims=True)
    alphas, betas = np.zeros((streams, steps)), np.zeros((streams, steps))
    ended = np.full(streams, steps)
    for j in range(steps):
        vector = values * basis[:, j]
        alphas[:, j] = (vector * basis[:, j]).sum(axis=1)
        scale = np.abs(alphas).max(axis=1) + betas.max(axis=1)
        vector = vector[:, :, None]
        for _ in range(2):
            known = basis[:, : j + 1]
            vector -= known.transpose(0, 2, 1) @ (known @ vector)
        left = np.linalg.norm(vector[:, :, 0], axis=1)
        over = (left <= _BREAKDOWN * scale) | (ended <= j)
        ended[over] = np.minimum(ended[over], j + 1)
        betas[:, j] = np.where(over, 0.0, left)
        if j + 1 < steps:
            basis[:, j + 1] = np.where(over[:, None], 0.0, vector[:, :, 0] / np.where(over, 1.0, left)[:, None])
    # In an eigenspace, a vector is its part along the stream's start vector and the rest, which no basis vector meets.
    along = rng.standard_normal((streams, singles, numel))
    rest = rng.chisquare(np.maximum(matrix.counts - 1, 1), (streams, singles, numel)) * (matrix.counts > 1)
    square = along**2 + rest
    squares = np.stack([(square * values**power).sum(axis=2) for power in range(3)], axis=2)
    return Streams(alphas, betas, ended, along @ basis.transpose(0, 2, 1), squares)
