"""Eigenpairs of models against dense matrices in float64, interrupted at every step, in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from interruptions import interrupted_at
from problems import CASES, dense_hessian, gpt, mlp, quadratic, symmetric

import hvp_engine as he
from hvp_engine.krylov.restart import RestartedLanczos
from hvp_engine.krylov.wanted import preferred

QUIET = {"check": False, "progress": False}


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("name", CASES)
def test_eigenpairs_are_those_of_the_dense_matrix(name: str, which: str) -> None:
    case = CASES[name]()
    found = he.eigsh(case.model, case.loss, "parameter", data=case.data, k=4, which=which, **QUIET)  # type: ignore[arg-type]
    assert len(found) > 3
    for block, pairs in found.items():
        dense = dense_hessian(case, [block])
        exact = np.linalg.eigvalsh(dense.numpy())
        wanted = np.sort(exact[preferred(exact, which)[:4]])  # type: ignore[arg-type]
        size = np.abs(exact).max()
        assert pairs.converged.all() and len(pairs.values) == min(4, pairs.numel)
        np.testing.assert_allclose(pairs.values, wanted, atol=1.1e-3 * size)
        vectors = pairs.vectors.double()
        residuals = (vectors @ dense - torch.from_numpy(pairs.values)[:, None] * vectors).norm(dim=1)
        assert float(residuals.max()) <= 1.01e-3 * size
        np.testing.assert_allclose(residuals, pairs.residuals, rtol=0.05, atol=1e-5 * size)


def test_repeated_eigenvalues_come_out_as_often_as_they_are_there() -> None:
    values = torch.cat([torch.tensor([7.0, 7.0, 7.0, -6.0, -6.0, 5.0]), torch.linspace(-1, 1, 194)])
    problem = quadratic(symmetric(values).float())
    pairs = he.eigsh(problem.model, problem.loss, k=6, **QUIET)["full"]  # type: ignore[arg-type]
    np.testing.assert_allclose(pairs.values, [-6, -6, 5, 7, 7, 7], atol=1e-4)


def same(a: he.Eigensystem, b: he.Eigensystem) -> bool:
    return list(a) == list(b) and all(
        np.array_equal(a[n].values, b[n].values)
        and np.array_equal(a[n].residuals, b[n].residuals)
        and torch.equal(a[n].vectors, b[n].vectors)
        and a[n].effort == b[n].effort
        for n in a
    )


@pytest.mark.parametrize(("memory", "stride"), [(None, 1), (80_000, 7)])
def test_an_interrupted_job_gives_the_same_bits(tmp_path: Path, memory: int | None, stride: int) -> None:
    case = gpt()
    blocks = ["wte.weight", "layers.1.c_fc.weight"]

    def pairs(out: Path | None) -> he.Eigensystem:
        return he.eigsh(case.model, case.loss, blocks, data=case.data, k=3, memory=memory, out=out, **QUIET)  # type: ignore[arg-type]

    wanted = pairs(None)
    assert wanted.manifest["plan"]["waves"] == (1 if memory is None else 2)
    sweeps = max(found.products for found in wanted.values()) // 2  # in waves more, and fewer are left by then
    for _ in range(sweeps // stride):
        with interrupted_at(stride, RestartedLanczos):
            pairs(tmp_path)
    found = pairs(tmp_path)
    assert same(found, wanted) and same(pairs(tmp_path), wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "spectra.safetensors"]


def test_a_restarted_basis_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    matrix = symmetric(torch.from_numpy(np.random.default_rng(0).normal(size=300))).float()
    problem = quadratic(matrix)

    def pairs(out: Path | None, vectors: bool = True) -> he.Eigensystem:
        return he.eigsh(problem.model, problem.loss, k=5, out=out, vectors=vectors, **QUIET)  # type: ignore[arg-type]

    wanted = pairs(None)
    assert wanted["full"].products > 30  # more than the basis holds: it was rotated
    for stop in (18, 9, 5):
        with interrupted_at(stop, RestartedLanczos):
            pairs(tmp_path)
    assert same(pairs(tmp_path), wanted)
    with interrupted_at(30, RestartedLanczos):
        pairs(tmp_path / "values", vectors=False)
    found = pairs(tmp_path / "values", vectors=False)["full"]
    np.testing.assert_array_equal(found.values, wanted["full"].values)
    with pytest.raises(he.HvpEngineError, match="call eigsh with vectors=True"):
        _ = found.vectors


def test_less_memory_keeps_fewer_vectors_and_finds_the_same() -> None:
    case = mlp()
    roomy = he.eigsh(case.model, case.loss, data=case.data, k=3, **QUIET)["full"]  # type: ignore[arg-type]
    tight = he.eigsh(case.model, case.loss, data=case.data, k=3, memory=40_000, **QUIET)["full"]  # type: ignore[arg-type]
    np.testing.assert_allclose(tight.values, roomy.values, atol=1e-3 * roomy.size)


def test_bf16_says_what_it_does_not_reach() -> None:
    case = gpt()
    found = he.eigsh(case.model, case.loss, "parameter", data=case.data, k=3, tolerance=1e-5, precision="bf16", **QUIET)  # type: ignore[arg-type]
    missed = [pairs for pairs in found.values() if not pairs.converged.all()]
    assert missed and all(pairs.effort.ended_by == "noise" and pairs.products < 300 for pairs in missed)
    assert all((pairs.residuals <= 0.1 * pairs.size).all() for pairs in found.values())
    (note,) = (note for note in found.manifest["notes"] if "tolerance 1e-05 was not reached" in note)
    assert "use a finer precision=" in note


def test_fp64_reaches_small_tolerances() -> None:
    case = mlp()
    pairs = he.eigsh(case.model, case.loss, data=case.data, k=3, tolerance=1e-10, precision="fp64", **QUIET)["full"]  # type: ignore[arg-type]
    exact = np.linalg.eigvalsh(dense_hessian(case).numpy())
    np.testing.assert_allclose(pairs.values, np.sort(exact[preferred(exact, "LM")[:3]]), atol=1e-10 * pairs.size)
    assert pairs.converged.all()


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    case = mlp()
    he.eigsh(case.model, case.loss, data=case.data, k=2, out=tmp_path, **QUIET)  # type: ignore[arg-type]
    with pytest.raises(he.HvpEngineError, match=r"holds another job .*k: 2 there, 3 here"):
        he.eigsh(case.model, case.loss, data=case.data, k=3, out=tmp_path, **QUIET)  # type: ignore[arg-type]
