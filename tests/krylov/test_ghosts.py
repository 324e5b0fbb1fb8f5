"""Without reorthogonalisation the diagnosis says from which step on there are copies, and how many there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvp_engine.krylov.ghosts import ghost_facts, ghosts_of
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.results.coefficients import Coefficients

EPS = float(torch.finfo(torch.float32).eps)
OUTLIERS = 4


def diagonal() -> torch.Tensor:
    """A bulk with a few values far outside, which converge within a dozen steps and then come back."""
    values = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    values[:OUTLIERS] = torch.tensor([10.0, 17.0, 26.0, 40.0])
    return values


def coefficients(steps: int, reorthogonalize: str = "none") -> Coefficients:
    values = diagonal()
    start = {"all": {k: probe(0, "all", k, len(values), "gaussian", torch.float32) for k in range(2)}}
    settings = LanczosSettings(steps, reorthogonalize, Storage(torch.float32))  # type: ignore[arg-type]
    lanczos = BatchedLanczos(
        lambda v: {"all": v["all"] * values.float()}, start, settings, torch.float32, torch.device("cpu")
    )
    while not lanczos.finished:
        lanczos.step()
    found = (lanczos.alphas, lanczos.betas[:, : steps - 1], lanczos.steps, lanczos.residuals)
    return Coefficients(len(values), *found, reorthogonalized=reorthogonalize != "none")


def copies_of_outliers(found: Coefficients, s: int) -> int:
    """How many of a stream's eigenvalues lie on outliers, beyond one on each."""
    off = found.betas[s]
    nodes = np.linalg.eigvalsh(np.diag(found.alphas[s]) + np.diag(off, 1) + np.diag(off, -1))
    outliers = diagonal()[:OUTLIERS].numpy()
    close = abs(nodes[:, None] - outliers) <= 1e-5 * outliers.max()
    return int((close.sum(axis=0) - 1).clip(0).sum())


@pytest.mark.parametrize("steps", [40, 60, 90])
def test_the_copies_are_counted(steps: int) -> None:
    found = coefficients(steps)
    wanted = max(copies_of_outliers(found, s) for s in range(2))
    assert wanted > 0
    assert ghosts_of(found, EPS).copies == wanted


def test_the_first_step_comes_before_the_first_copy_and_not_at_once() -> None:
    first = ghosts_of(coefficients(90), EPS).from_step
    assert first is not None and first > 5
    for steps in range(first + 1, 60):
        if max(copies_of_outliers(coefficients(steps), s) for s in range(2)):
            break
    assert first < steps <= 4 * first
    assert ghosts_of(coefficients(first - 1), EPS) == (None, 0)


def test_orthogonal_streams_have_no_copies() -> None:
    found = coefficients(90, "full")
    assert copies_of_outliers(found, 0) == 0
    assert ghosts_of(found, EPS).copies == 0


def test_the_facts_name_the_block_and_the_step() -> None:
    data, words = ghost_facts({"a": coefficients(60), "b": coefficients(5)}, EPS)
    assert data["b"] == {"from_step": None, "copies": 0}
    (line,) = words
    assert f"in 1 of 2 blocks, from step {data['a']['from_step']} on (a)" in line
    assert f"at most {data['a']['copies']} in a stream (a)" in line
    assert ghost_facts({"b": coefficients(5)}, EPS)[1] == []
