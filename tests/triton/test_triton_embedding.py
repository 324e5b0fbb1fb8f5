"""Embedding on its Triton kernels, interpreted: a lookup and its deterministic gradient."""

from __future__ import annotations

import pytest
import torch
from derivative_checks import DTYPES, check_against_plain, same_bits_twice, strided
from loss_checks import check_derivatives

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.embedding import embedding, embedding_ref

pytestmark = [
    pytest.mark.usefixtures("on_triton"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 31, 257])
@pytest.mark.parametrize("padding", [None, 2])
def test_it_equals_plain_pytorch_at_awkward_sizes(columns, dtype, padding):
    tokens = torch.tensor([[3, 3, 0], [2, 5, 3]])
    table = strided(7, columns, dtype=dtype)
    fused, plain = (lambda w, f=f: f(tokens, w, padding) for f in (embedding, embedding_ref))
    check_against_plain(fused, plain, [table])


def test_a_token_that_comes_often_is_summed_once():
    tokens = torch.tensor([1] * 40 + [0, 2])
    table = torch.randn(3, 5, requires_grad=True)
    g = torch.randn(42, 5)
    (gradient,) = torch.autograd.grad(embedding(tokens, table), table, g)
    torch.testing.assert_close(gradient, torch.stack([g[40], g[:40].sum(0), g[41]]))


def test_derivatives_are_those_of_finite_differences():
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    check_derivatives(lambda w: embedding(torch.tensor([1, 1, 3]), w), (table,))


def test_a_token_outside_the_table_is_refused():
    with pytest.raises(ConfigurationError, match="Token 7 is not a row"):
        embedding(torch.tensor([7]), torch.randn(7, 2))
    embedding(torch.tensor([6]), torch.randn(7, 2))


def test_two_runs_give_the_same_bits():
    tokens = torch.randint(0, 6, (50,))
    assert same_bits_twice(lambda w: embedding(tokens, w), [torch.randn(6, 17)])
