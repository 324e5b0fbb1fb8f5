"""Operators in SciPy's solvers, against what they give for the dense matrix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import dense_hessian, gpt, mlp
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh, svds

import hvp_engine as he
from hvp_engine.errors import ConfigurationError

WEIGHT = "layers.0.c_fc.weight"  # of the GPT with tied weights, ragged batches and ignored tokens


def block(precision: str = "fp64") -> tuple[Any, np.ndarray]:
    case = gpt()
    blocks = {"other": ["ln_f.weight"], "mine": [WEIGHT]}
    op = he.HessianOperator(case.model, case.loss, blocks, data=case.data, precision=precision)  # type: ignore[arg-type]
    return op.scipy("mine"), dense_hessian(case, [WEIGHT]).numpy()


def test_it_is_a_symmetric_linear_operator_of_numpys_dtype() -> None:
    found, dense = block()
    assert isinstance(found, LinearOperator) and found.shape == dense.shape and found.dtype == np.float64
    assert block("fp32")[0].dtype == np.float32
    v, columns = np.random.default_rng(0).standard_normal((2, 256, 3))
    for product in (found.matmat(v), found.rmatmat(v), found.H @ v, found.T @ v):
        np.testing.assert_allclose(product, dense @ v, atol=1e-12)
    for product in (found.matvec(v[:, 0]), found.rmatvec(v[:, 0]), found @ v[:, 0]):
        np.testing.assert_allclose(product, dense @ v[:, 0], atol=1e-12)
    assert found.matvec(v[:, :1]).shape == (256, 1)
    np.testing.assert_allclose((2 * found + aslinearoperator(np.eye(256))) @ columns, 2 * dense @ columns + columns)


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_eigsh_finds_the_eigenpairs(which: str) -> None:
    found, dense = block()
    values, vectors = eigsh(found, k=4, which=which)
    np.testing.assert_allclose(dense @ vectors, vectors * values, atol=1e-10)
    np.testing.assert_allclose(np.sort(values), np.sort(eigsh(dense, k=4, which=which)[0]), atol=1e-10)


def test_eigsh_runs_in_float32() -> None:
    found, dense = block("fp32")
    values = eigsh(found, k=3, which="LA", tol=1e-4)[0]
    np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[-3:], rtol=1e-4)


@pytest.mark.parametrize("solver", ["arpack", "lobpcg"])
def test_svds_finds_the_singular_values(solver: str) -> None:
    found, dense = block()
    left, values, right = svds(found, k=3, solver=solver, random_state=1)
    np.testing.assert_allclose(np.sort(values)[::-1], np.linalg.svd(dense)[1][:3], rtol=1e-6)
    np.testing.assert_allclose(dense @ right.T, left * values, atol=1e-4)


def test_cg_solves_the_damped_system() -> None:
    found, dense = block()
    damping = 1.1 * max(0.0, -np.linalg.eigvalsh(dense)[0]) + 0.05
    right = np.random.default_rng(0).standard_normal(256)
    damped = found + aslinearoperator(damping * np.eye(256))
    solution, failure = cg(damped, right, rtol=1e-10)
    assert failure == 0
    np.testing.assert_allclose(solution, np.linalg.solve(dense + damping * np.eye(256), right), rtol=1e-6, atol=1e-8)


def test_without_scipy_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    case = mlp()
    op = he.HessianOperator(case.model, case.loss, data=case.data)
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ConfigurationError, match=r"pip install scipy, .* extra \[scipy\]"):
        op.scipy()
    assert torch.isfinite(op @ torch.ones(111)).all()  # the operator itself needs none
    assert '\nscipy = ["scipy>=' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
