"""Softmax on its Triton kernels, interpreted: values and two derivatives are those of plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from derivative_checks import DTYPES, SIZES, check_against_plain, same_bits_twice, strided
from loss_checks import check_derivatives

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
