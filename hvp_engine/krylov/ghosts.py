"""What losing their orthogonality did to Lanczos vectors that were not kept: copies of converged eigenvalues.

Vectors that are no longer orthogonal contain what was found before, and Lanczos finds it again (Paige 1971): T gets
further eigenvalues that agree to the rounding with converged ones, which in exact arithmetic none does. From which step
on that must be expected follows from the coefficients (:mod:`hvp_engine.krylov.omega`), without a single vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hvp_engine.krylov.omega import Omega
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.ritz import ritz

_AGREE = 64.0  # copies differ by so many errors of a product at most


class Ghosts(NamedTuple):
    """What to expect of a block.

    Attributes:
        from_step: The first step that may have given a copy; None where no stream got so far.
        copies: Largest number of eigenvalues of one stream's T that are copies.
    """

    from_step: int | None
    copies: int


def ghosts_of(found: Coefficients, eps: float) -> Ghosts:
    """Judge the streams of a block whose vectors were orthogonalised against the last two alone.

    Args:
        found: What they found.
        eps: Rounding of the vectors.
    """
    first = _first_step(found, eps)
    return Ghosts(first, 0 if first is None else _copies(found))


def ghost_facts(blocks: Mapping[str, Coefficients], eps: float) -> tuple[dict[str, dict[str, int | None]], list[str]]:
    """Return what a manifest says of blocks without reorthogonalisation, as plain data by block and in words."""
    found = {name: ghosts_of(coefficients, eps) for name, coefficients in blocks.items()}
    hit = {name: ghosts for name, ghosts in found.items() if ghosts.from_step is not None}
    words = []
    if hit:
        earliest = min(hit, key=lambda name: hit[name].from_step or 0)
        most = max(hit, key=lambda name: hit[name].copies)
        counted = f", at most {hit[most].copies} in a stream ({most})" if hit[most].copies else ""
        words.append(
            f"Without reorthogonalisation copies of converged eigenvalues must be expected in {len(hit)} of "
            f"{len(found)} blocks, from step {hit[earliest].from_step} on ({earliest}){counted}."
        )
    return {name: ghosts._asdict() for name, ghosts in found.items()}, words


def _first_step(found: Coefficients, eps: float) -> int | None:
    """Return the first step, counted from 1, that had a vector whose cosines harm coefficients."""
    omega = Omega(found.probes, found.alphas.shape[1], eps, found.noise)
    left = np.concatenate((found.betas, np.zeros((found.probes, 1))), axis=1)
    left[np.arange(found.probes), found.steps - 1] = found.residuals
    for j in range(int(found.steps.max()) - 1):
        rows = np.flatnonzero(found.steps > j + 1)  # what the last step leaves is multiplied no more
        if not (omega.advance(j, rows, found.alphas[rows, j], left[rows, j]) <= omega.limit).all():
            return j + 2
    return None


def _copies(found: Coefficients) -> int:
    """Count the eigenvalues that agree with the one before, in the stream that has most.

    One of the two has converged, else they are neighbours in a spectrum that is too dense for its steps.
    """
    values = ritz(found)
    limit = _AGREE * values.floor
    converged = values.used & (values.residuals <= limit)
    agree = (np.diff(values.nodes, axis=1) <= limit) & (converged[:, 1:] | converged[:, :-1])
    return int(agree.sum(axis=1).max()) if agree.size else 0
