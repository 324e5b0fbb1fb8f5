"""Lanczos streams and single products on matrices that are known by their eigenvalues, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage.matrices import Floats, Matrix
from hvp_engine.results.spectrum import Spectrum

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
    steps: NDArray[np.int64]
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


def spectrum(matrix: Matrix, found: Streams, rows: list[int], steps: int, singles: int) -> Spectrum:
    """Build what a job would return: some streams cut to so many steps, and single products beside the first."""
    index = np.array(rows)
    taken = np.minimum(found.steps[index], steps)
    residuals = found.betas[index, taken - 1]
    deflated = max(0, int(taken[0]) - 1)
    return Spectrum.from_tridiagonal(
        matrix.name,
        matrix.numel,
        found.alphas[index, :steps],
        found.betas[index, : steps - 1],
        taken,
        residuals=residuals,
        singles=_singles(found, rows[0], deflated, singles) if singles and deflated else None,
        deflated=deflated if singles else 0,
    )


def _singles(found: Streams, row: int, deflated: int, count: int) -> Floats:
    """Deflate the single products of a stream: everything but their squares follows from its coefficients.

    With Q the vectors taken out, q the next one and c = Q'g, H Q = Q T + beta q e' gives h'Hh and |Hh|^2, h = g - Q c.
    """
    alphas, betas = found.alphas[row], found.betas[row]
    inner = found.inner[row, :count]
    length, form, square = found.squares[row, :count].T
    c, after, beta = inner[:, :deflated], inner[:, deflated], betas[deflated - 1]
    tc = c * alphas[:deflated]
    tc[:, 1:] += c[:, :-1] * betas[: deflated - 1]
    tc[:, :-1] += c[:, 1:] * betas[: deflated - 1]
    qg = tc.copy()  # Q'Hg
    qg[:, -1] += beta * after
    ahead = beta * c[:, -1] + alphas[deflated] * after + betas[deflated] * inner[:, deflated + 1]  # q'Hg
    length = length - (c**2).sum(axis=1)
    form = form - (c * tc).sum(axis=1) - 2.0 * beta * c[:, -1] * after
    square = square - 2.0 * ((qg * tc).sum(axis=1) + beta * c[:, -1] * ahead) + (tc**2).sum(axis=1)
    square += (beta * c[:, -1]) ** 2
    return np.stack([form, square, after**2], axis=1) / length[:, None]
