"""Selective reorthogonalisation reads the basis seldom, and gives the coefficients of the full one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.omega import Omega
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings

STEPS = 60


def heavy_tail(n: int, outliers: int) -> Tensor:
    """A bulk around zero, with a heavy tail, and values far outside: what the Hessian of a network looks like."""
    bulk = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) ** 3 / 10
    bulk[:outliers] = torch.logspace(0.5, 2, outliers, dtype=torch.float64)
    return bulk


# Streams that lose their orthogonality after different numbers of steps; one ends at its length, one by breakdown.
DIAGONALS = {
    "outliers": heavy_tail(3000, 6),
    "bulk": torch.linspace(-1, 1, 2000, dtype=torch.float64),
    "few": torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64).repeat_interleave(100),
    "short": torch.linspace(1, 2, 9, dtype=torch.float64),
}
STORAGES = {
    "fp32": (torch.float32, Storage(torch.float32)),
    "fp64": (torch.float64, Storage(torch.float64)),
    "bf16": (torch.float32, Storage(torch.bfloat16)),
}


def lanczos(name: str, reorthogonalize: str = "selective", noise: float = 0.0, **options: Any) -> BatchedLanczos:
    dtype, storage = STORAGES[name]
    generator = torch.Generator().manual_seed(1)

    def multiply(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        products = {block: rows * DIAGONALS[block].to(dtype) for block, rows in vectors.items()}
        for rows in products.values() if noise else ():
            error = torch.randn(rows.shape, generator=generator).to(dtype)
            rows.add_(noise * rows.norm(dim=1, keepdim=True) * error / error.norm(dim=1, keepdim=True))
        return products

    starts = {
        block: {k: probe(0, block, k, len(d), "gaussian", dtype) for k in range(2)} for block, d in DIAGONALS.items()
    }
    settings = LanczosSettings(STEPS, reorthogonalize, storage, noise)  # type: ignore[arg-type]
    return BatchedLanczos(multiply, starts, settings, dtype, torch.device("cpu"), **options)


def finish(state: BatchedLanczos) -> BatchedLanczos:
    while not state.finished:
        state.step()
    return state


def nodes(state: BatchedLanczos, s: int) -> np.ndarray:
    m = int(state.steps[s])
    t = np.diag(state.alphas[s, :m]) + np.diag(state.betas[s, : m - 1], 1) + np.diag(state.betas[s, : m - 1], -1)
    return np.linalg.eigvalsh(t)


@pytest.mark.parametrize("name", sorted(STORAGES))
def test_the_basis_stays_semi_orthogonal_and_is_read_in_few_steps(name: str) -> None:
    state = finish(lanczos(name))
    eps = torch.finfo(STORAGES[name][0]).eps
    rounding = 2 * 2.0**-8 if name == "bf16" else 0.0
    for (block, _), lost in state.orthogonality().items():
        assert lost <= 4 * eps**0.5 + rounding, block
    assert 0.0 < state.basis_reads < (1.0 if name == "bf16" else 0.5)
    assert finish(lanczos(name, "full")).basis_reads == 1.0
    assert finish(lanczos(name, "none")).basis_reads == 0.0


@pytest.mark.parametrize("name", sorted(STORAGES))
def test_the_coefficients_give_the_spectra_of_full_reorthogonalisation(name: str) -> None:
    selective, full = finish(lanczos(name)), finish(lanczos(name, "full"))
    ghosts = finish(lanczos(name, "none"))
    eps = torch.finfo(STORAGES[name][0]).eps
    missed = 0
    for s in range(len(full.streams)):
        assert selective.steps[s] == full.steps[s]
        wanted = nodes(full, s)
        range_ = wanted[-1] - wanted[0]
        # In the Wasserstein distance, for values that have not converged react to every rounding.
        assert float(abs(nodes(selective, s) - wanted).mean()) <= 50 * eps * range_
        if ghosts.steps[s] == full.steps[s]:
            missed += float(abs(nodes(ghosts, s) - wanted).mean()) > 50 * eps * range_
    assert missed > 0  # without reorthogonalisation they differ


def test_every_stream_decides_by_itself() -> None:
    state = finish(lanczos("fp32"))
    alone = finish(lanczos("fp32", limits={"few": 1, "bulk": 1, "short": 1}))
    assert torch.equal(alone.state.alphas[:2], state.state.alphas[:2])
    reads = state.scalars["left"] > 0
    assert not torch.equal(reads[0], reads[2])


def test_noisy_products_have_the_basis_read_in_every_step() -> None:
    state = finish(lanczos("fp32", noise=1e-2))
    assert (state.scalars["left"][0, 3:STEPS] > 0).all()
    assert max(state.orthogonality().values()) <= 1e-5


@pytest.mark.parametrize("name", sorted(STORAGES))
@pytest.mark.parametrize("cut", [1, 17, 40])
def test_a_run_that_is_resumed_decides_what_it_had_decided(name: str, cut: int) -> None:
    whole, first, second = finish(lanczos(name)), lanczos(name), lanczos(name)
    for _ in range(cut):
        first.step()
    second.basis.restore(0, cut + 1, first.basis.export(0, cut + 1))
    second.basis.restore_window({key: value.clone() for key, value in first.basis.export_window().items()})
    for key, value in second.scalars.items():
        value.copy_(first.scalars[key])
    second.resume(cut)
    finish(second)
    for key, value in whole.scalars.items():
        assert torch.equal(second.scalars[key], value), key


def test_the_estimate_is_no_less_than_the_measured_loss_and_grows_with_it() -> None:
    torch.manual_seed(0)
    diagonal = DIAGONALS["outliers"].float()
    rows = [torch.nn.functional.normalize(torch.randn(len(diagonal)), dim=0)]
    omega, beta, before = Omega(1, STEPS, float(torch.finfo(torch.float32).eps), 0.0), 0.0, torch.zeros_like(rows[0])
    for j in range(STEPS):
        product = diagonal * rows[j] - beta * before
        alpha = float(rows[j].double() @ product.double())
        product = (product - alpha * rows[j]).float()
        product -= (product @ rows[j]) * rows[j]
        beta, before = float(product.double().norm()), rows[j]
        rows.append(product / beta)
        (estimate,) = omega.advance(j, np.array([0]), np.array([alpha]), np.array([beta]))
        measured = float((torch.stack(rows[:-1]).double() @ rows[-1].double()).abs().max())
        if estimate > 0.01:
            break
        assert measured <= 10 * estimate
    assert measured > 1e-5  # both have grown, by orders of magnitude
