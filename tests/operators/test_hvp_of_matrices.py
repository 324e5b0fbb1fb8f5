"""Single products with every matrix that can be asked for by name."""

from __future__ import annotations

import pytest
import torch
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.registry import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_product_is_that_with_the_dense_block(operator: str) -> None:
    case = mlp()
    vectors = {"0.weight": torch.randn(2, 35, dtype=torch.float64), "2.bias": torch.ones(1, 6, dtype=torch.float64)}
    options = {"data": case.data, "operator": operator, "precision": "fp64", "seed": 3}
    products = he.hvp(case.model, case.loss, vectors, list(vectors), **options)
    blocks = he.dense(case.model, case.loss, list(vectors), **options)
    for name, matrix in blocks.items():
        assert float(matrix.abs().max()) > 1e-6
        assert torch.allclose(products[name], vectors[name] @ matrix, rtol=1e-8, atol=1e-12)


def test_the_seed_draws_fishers_targets() -> None:
    case = mlp()

    vectors = {"4.bias": torch.tensor([[1.0, -2.0, 0.5]])}

    def product(seed: int) -> torch.Tensor:
        options = {"data": case.data, "operator": "fisher", "seed": seed}
        return he.hvp(case.model, case.loss, vectors, ["4.bias"], **options)["4.bias"]

    assert torch.equal(product(0), product(0))
    assert not torch.equal(product(0), product(1))


@pytest.mark.parametrize(("options", "message"), [({"operator": "hesian"}, "not one of"), ({"seed": "3"}, "seed='3'")])
def test_an_unknown_matrix_and_a_seed_that_is_none_are_refused(options: dict[str, str], message: str) -> None:
    case = mlp()
    with pytest.raises(ConfigurationError, match=message):
        he.hvp(case.model, case.loss, {"4.bias": torch.ones(1, 3)}, ["4.bias"], data=case.data, **options)
