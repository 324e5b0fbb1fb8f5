"""What each storage of Lanczos vectors costs: orthogonality, and the spectrum, over a hundred steps."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import STORAGES
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.scheduling.storages import EXPECTED_LOSS

NUMEL, STEPS = 20_000, 100
# A bulk of both signs, and outliers that converge within a few steps, to which lost orthogonality shows first.
SPECTRUM = torch.cat([torch.linspace(-1.0, 1.0, NUMEL - 8).pow(3), torch.logspace(0.5, 2.0, 8)])


@cache
def run(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Nodes and weights of the quadrature, and what is lost of orthogonality."""
    start = {"all": {0: probe(0, "all", 0, NUMEL, "gaussian", torch.float32)}}

    def multiply(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {block: SPECTRUM * rows for block, rows in vectors.items()}

    settings = LanczosSettings(STEPS, "full", STORAGES[name])
    lanczos = BatchedLanczos(multiply, start, settings, torch.float32, torch.device("cpu"))
    while not lanczos.finished:
        lanczos.step()
    off = lanczos.betas[0, : STEPS - 1]
    nodes, vectors = np.linalg.eigh(np.diag(lanczos.alphas[0]) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2, lanczos.orthogonality()["all", 0]


@pytest.mark.parametrize("name", sorted(STORAGES))
def test_orthogonality_is_lost_no_further_than_is_said(name: str) -> None:
    assert run(name)[2] <= EXPECTED_LOSS[STORAGES[name].dtype]


@pytest.mark.parametrize("name", sorted(set(STORAGES) - {"fp32"}))
def test_the_spectrum_is_that_of_plain_vectors(name: str) -> None:
    (nodes, weights, _), (others, theirs, _) = run("fp32"), run(name)
    points = np.sort(np.concatenate([nodes, others]))
    below = [weights[nodes <= x].sum() - theirs[others <= x].sum() for x in points[:-1]]
    assert float(abs(np.array(below)) @ np.diff(points)) <= 1e-4 * np.ptp(nodes)


def test_without_orthogonalisation_this_spectrum_has_ghosts() -> None:
    start = {"all": {0: probe(0, "all", 0, NUMEL, "gaussian", torch.float32)}}
    settings = LanczosSettings(STEPS, "none", STORAGES["fp32"])
    lanczos = BatchedLanczos(
        lambda vectors: {block: SPECTRUM * rows for block, rows in vectors.items()},
        start,
        settings,
        torch.float32,
        torch.device("cpu"),
    )
    while not lanczos.finished:
        lanczos.step()
    off = lanczos.betas[0, : STEPS - 1]
    nodes = np.linalg.eigvalsh(np.diag(lanczos.alphas[0]) + np.diag(off, 1) + np.diag(off, -1))
    assert (nodes > 99.0).sum() > 1 == (run("int8")[0] > 99.0).sum()
