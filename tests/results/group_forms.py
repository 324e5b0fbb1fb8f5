"""Groups of samples with known expected Hessians, and what a job would find of them, without a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results.data_error import ENDS, HALVES, GroupForms, halves

Array = NDArray[np.float64]


def forms_of(groups: Array, weights: Array, rng: np.random.Generator, probes: int = 8) -> GroupForms:
    """Return the forms of dense group matrices (G, n, n), with exact eigenvectors of the halves."""
    numel = groups.shape[1]
    z = rng.standard_normal((probes, numel))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    products = np.einsum("gij,sj->sgi", groups, z)
    quotients = np.zeros((HALVES, ENDS, len(groups)))
    half = halves(len(groups))
    for h in range(HALVES):
        _, vectors = np.linalg.eigh(groups[half == h].sum(0) / weights[half == h].sum())
        for end, y in enumerate((vectors[:, -1], vectors[:, 0])):
            quotients[h, end] = np.einsum("i,gij,j->g", y, groups, y)
    return GroupForms(
        numel,
        weights,
        np.einsum("si,sgi->sg", z, products),
        np.einsum("sgi,shi->sgh", products, products),
        quotients,
        np.zeros((HALVES, ENDS)),
    )


def grouped(samples: Array, sign: Array, groups: int) -> tuple[Array, Array]:
    """Sum ``sign_i x_i x_i'`` over contiguous groups of samples (N, n): the matrices (G, n, n) and their weights."""
    of = np.arange(len(samples)) * groups // len(samples)
    matrices = [(samples[of == g].T * sign[of == g]) @ samples[of == g] for g in range(groups)]
    return np.stack(matrices), np.bincount(of).astype(float)
