"""Activations on their Triton kernels, interpreted: values and two derivatives are those of plain PyTorch."""

from __future__ import annotations

import functools

import pytest
import torch
from derivative_checks import DTYPES, SIZES, check_against_plain, same_bits_twice, strided
from loss_checks import check_derivatives

from hvp_engine.ops.activations import gelu, gelu_ref, silu, silu_ref, swiglu, swiglu_ref

pytestmark = [
    pytest.mark.usefixtures("on_triton"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

ACTIVATIONS = {
    "gelu": (gelu, gelu_ref),
    "gelu tanh": tuple(functools.partial(f, approximate="tanh") for f in (gelu, gelu_ref)),
    "silu": (silu, silu_ref),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_plain_pytorch_at_awkward_sizes(name, dtype):
    fused, plain = ACTIVATIONS[name]
    for size in SIZES:
        check_against_plain(fused, plain, [3 * strided(2, size, dtype=dtype)], scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_equals_plain_pytorch_at_awkward_sizes(dtype):
    for size in SIZES:
        check_against_plain(swiglu, swiglu_ref, [strided(2, size, dtype=dtype), strided(2, size, dtype=dtype)], scale=1)


def test_derivatives_are_those_of_finite_differences():
    check_derivatives(gelu, (torch.randn(2, 3, dtype=torch.float64, requires_grad=True),))


def test_swiglus_derivatives_are_those_of_finite_differences():
    check_derivatives(swiglu, tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_tails_are_finite(name):
    x = torch.tensor([-1e30, -200.0, -65.0, 65.0, 200.0, 1e30], requires_grad=True)
    y = ACTIVATIONS[name][0](x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(y, x.clamp(min=0))
    torch.testing.assert_close(first, (x > 0).float())
    torch.testing.assert_close(second, torch.zeros_like(x))


def test_operands_that_a_vmap_shares_are_not_copied():
    gate, up = torch.randn(2, 9, dtype=torch.float64), torch.randn(5, 2, 9, dtype=torch.float64)
    ours, theirs = (torch.func.vmap(lambda u, f=f: f(gate, u))(up) for f in (swiglu, swiglu_ref))
    torch.testing.assert_close(ours, theirs)


def test_two_runs_give_the_same_bits():
    assert same_bits_twice(swiglu, [torch.randn(3, 700), torch.randn(3, 700)])
