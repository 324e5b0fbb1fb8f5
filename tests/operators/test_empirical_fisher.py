"""Empirical Fisher matrices against loops over samples and tokens in float64."""

from __future__ import annotations

import pytest
import torch
from fisher_oracles import by_samples
from problems import Case
from test_hvp import offsets
from torch import Tensor, nn

from hvp_engine.operators.empirical_fisher import EmpiricalFisherOperator
from hvp_engine.operators.operator import CurvatureOperator

TOLERANCE = {"fp32": 2e-5, "fp64": 1e-11}


def compare(operator: CurvatureOperator, dense: Tensor, model: nn.Module, precision: str = "fp64") -> None:
    """Products with every block, one vector and several, against the dense matrix."""
    where = offsets(model)
    scale = float(torch.linalg.matrix_norm(dense, 2))
    for streams in (1, 6):
        operator.scheduler.plan.streams_per_pass = streams
        vectors = {name: torch.randn(6, n, dtype=torch.float64) for name, n in operator.numel.items()}
        for name, found in operator.matmat(vectors).items():
            part = where.get(name, slice(None))
            error = (found.double() - vectors[name] @ dense[part, part]).norm()
            assert float(error) <= TOLERANCE[precision] * scale * float(vectors[name].norm()), (name, streams)


def blocks_of(model: nn.Module) -> dict[str, list[str]]:
    return {"all of it": ["*"], **{name: [name] for name in offsets(model)}}


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("microbatch", [None, 2])
def test_products_by_samples_match_a_loop(case: Case, precision: str, microbatch: int | None) -> None:
    operator = EmpiricalFisherOperator(
        case.model, case.loss, blocks_of(case.model), data=case.data, precision=precision, microbatch=microbatch
    )
    compare(operator, by_samples(case), case.model, precision)
    assert all(operator._together.values())  # none went one by one
