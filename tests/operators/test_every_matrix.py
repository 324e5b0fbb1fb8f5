"""Every operator in place of its matrix: whole matrices, products in every form, and what lies between blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import Case, gpt, mlp
from scipy.sparse.linalg import eigsh
from torch import Tensor

import hvp_engine as he
from hvp_engine.krylov.probes import probe
from hvp_engine.operators.registry import OPERATORS

NAMES = list(OPERATORS)


def whole(case: Case, operator: str, **options: object) -> Tensor:
    found = he.dense(case.model, case.loss, data=case.data, operator=operator, progress=False, **options)  # type: ignore[arg-type]
    assert found.asymmetry["full"] <= 1e-12
    return found["full"]


@pytest.mark.parametrize("name", NAMES)
def test_matrices_of_blocks_and_products_are_those_of_the_whole_matrix(name: str) -> None:
    case = mlp()
    matrix = whole(case, name)
    blocks = he.dense(case.model, case.loss, "parameter", data=case.data, operator=name, progress=False)
    start = 0
    for parameter, size in ((n, p.numel()) for n, p in case.model.named_parameters()):
        own = matrix[start : start + size, start : start + size]
        torch.testing.assert_close(blocks[parameter], own, rtol=1e-10, atol=1e-13)
        start += size
    op = OPERATORS[name](case.model, case.loss, data=case.data, precision="fp64")
    columns = torch.randn(len(matrix), 2, dtype=torch.float64)
    torch.testing.assert_close(op @ columns, matrix @ columns, rtol=1e-9, atol=1e-12)
    flat, named = op @ columns[:, 0], op @ op.unflatten("full", columns[:, 0])
    torch.testing.assert_close(op.flatten("full", named), flat, rtol=1e-9, atol=1e-12)
    largest = eigsh(op.scipy(), k=2, return_eigenvectors=False)
    wanted = torch.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(np.abs(largest).max(), float(wanted.abs().max()), rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_between_blocks_is_what_the_whole_matrix_has_there(name: str) -> None:
    case = mlp()
    matrix = whole(case, name).numpy()
    found = he.off_diagonal(
        case.model, case.loss, "module", data=case.data, probes=2, operator=name, precision="fp64", progress=False
    )
    edges = np.cumsum([0, *found.numel.values()])
    for k, sums in enumerate(found.sums):
        v = probe(0, "all blocks", k, len(matrix), "gaussian", torch.float64).numpy()
        for own, rows in zip(sums, map(slice, edges[:-1], edges[1:]), strict=True):
            h, d = matrix[rows] @ v, matrix[rows, rows] @ v[rows]
            wanted = h @ h, d @ d, (h - d) @ (h - d), h @ d
            np.testing.assert_allclose(own, wanted, rtol=1e-8, atol=1e-12 * (h @ h))
    assert f"H the {name}, " in found.summary()


def test_the_seed_of_a_drawn_matrix_is_that_of_the_call() -> None:
    case = mlp()
    first, again, other = (whole(case, "fisher", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_preconditioned_matrices_are_scaled_from_both_sides(name: str) -> None:
    case = gpt()
    diagonal = {n: torch.rand(p.shape) + 0.1 for n, p in case.model.named_parameters()}
    blocks = {"wte": ["wte.weight"], "wq": ["layers.0.attn.wq.weight"]}
    options = {"data": case.data, "operator": name, "progress": False}
    plain = he.dense(case.model, case.loss, blocks, **options)  # type: ignore[arg-type]
    scaled = he.dense(case.model, case.loss, blocks, precondition=diagonal, **options)  # type: ignore[arg-type]
    for block, (parameter,) in blocks.items():
        scale = diagonal[parameter].double().reshape(-1).rsqrt()
        torch.testing.assert_close(scaled[block], scale[:, None] * plain[block] * scale, rtol=1e-9, atol=1e-12)
    between = he.off_diagonal(case.model, case.loss, blocks, probes=2, precondition=diagonal, **options)  # type: ignore[arg-type]
    assert f"H the preconditioned {name}, " in between.summary()
