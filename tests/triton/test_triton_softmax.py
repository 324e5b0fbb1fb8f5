"""Softmax on its Triton kernels, interpreted: values and two derivatives are those of plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from derivative_checks import DTYPES, SIZES, check_against_plain, same_bits_twice, strided
from loss_checks import check_derivatives

from hvp_engine.kernels.softmax import softmax_tangent, softmax_tangent_ref
from hvp_engine.ops.softmax import softmax, softmax_ref

pytestmark = [
    pytest.mark.usefixtures("on_triton"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", SIZES)
def test_it_equals_plain_pytorch_at_awkward_sizes(columns, dtype):
    check_against_plain(softmax, softmax_ref, [3 * strided(3 if columns < 1000 else 2, columns, dtype=dtype)])


def test_any_dimension_of_many_rows(on_triton):
    x = torch.randn(5, 3, 70)
    for dim in (0, 1, 2):
        check_against_plain(lambda x, d=dim: softmax(x, d), lambda x, d=dim: softmax_ref(x, d), [x])


def test_derivatives_are_those_of_finite_differences():
    check_derivatives(softmax, (torch.randn(3, 4, dtype=torch.float64, requires_grad=True),))


def test_infinities_are_those_of_pytorch():
    inf = float("inf")
    x = torch.tensor([[-inf, 0.0, 1.0], [-inf, -inf, -inf], [inf, 0.0, 1.0], [-inf, -inf, 2.0]])
    torch.testing.assert_close(softmax(x), softmax_ref(x), equal_nan=True)


def test_two_runs_give_the_same_bits():
    assert same_bits_twice(softmax, [torch.randn(5, 131)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", SIZES)
def test_tangents_around_a_given_mean(columns, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = (3 * torch.randn(5, columns + 3)).to(dtype)[:, 1 : columns + 1]
    norm = torch.stack([logits.to(wide).amax(1), torch.rand(5, dtype=wide)], 1)
    factor, center = torch.randn(2, 5, dtype=wide)
    factor[3], logits[3] = 0.0, float("inf")
    tangent, totals = torch.randn(5, columns).to(dtype), torch.randn(5, dtype=torch.float64)
    expected = softmax_tangent_ref(logits.to(wide), norm, factor, center, tangent.to(wide))
    expected[3] = 0.0
    sums = totals + expected.double().sum(1)
    softmax_tangent(logits, norm, factor, center, tangent, totals)
    torch.testing.assert_close(tangent, expected.to(dtype))
    torch.testing.assert_close(totals, sums, rtol=1e-5, atol=1e-5)
