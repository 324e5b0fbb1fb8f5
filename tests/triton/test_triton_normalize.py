"""Layer and RMS norm on their Triton kernels, interpreted: values and derivatives are those of plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from derivative_checks import DTYPES, SIZES, check_against_plain, check_reverse_derivatives, same_bits_twice, strided

from hvp_engine.ops.layer_norm import layer_norm, layer_norm_ref
from hvp_engine.ops.rms_norm import rms_norm, rms_norm_ref

pytestmark = [
    pytest.mark.usefixtures("on_triton"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

# Every size in float32, and every dtype a short and a long row.
CASES = [(size, torch.float32) for size in SIZES]
CASES += [(size, dtype) for dtype in DTYPES[1:] for size in (31, 1025)]


def layer(function):
    return lambda x, w, b: function(x, x.shape[-1:], w, b)


def rms(function):
    return lambda x, w: function(x, x.shape[-1:], w, 1e-5)


def rows_of(size):
    return 9 if size < 100 else 2


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_layer_norm_equals_plain_pytorch_at_awkward_sizes(size, dtype):
    inputs = [3 + 2 * strided(rows_of(size), size, dtype=dtype), *(torch.randn(size).to(dtype) for _ in range(2))]
    # A row of one element has no deviation: eps alone makes terms that cancel large.
    check_against_plain(layer(layer_norm), layer(layer_norm_ref), inputs, scale=1e5 if size < 3 else 1.0)


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_rms_norm_equals_plain_pytorch_at_awkward_sizes(size, dtype):
    inputs = [strided(rows_of(size), size, dtype=dtype), torch.randn(size).to(dtype)]
    check_against_plain(rms(rms_norm), rms(rms_norm_ref), inputs, scale=1.0)


def test_float32_parameters_of_bfloat16_rows():
    x = torch.randn(5, 40).bfloat16()
    w, b = torch.randn(40), torch.randn(40)
    torch.testing.assert_close(layer_norm(x, (40,), w, b), layer_norm_ref(x.float(), (40,), w, b).bfloat16())


def test_rows_without_parameters():
    check_against_plain(
        lambda x: layer_norm(x, (4, 5)), lambda x: layer_norm_ref(x, (4, 5)), [torch.randn(3, 4, 5)], scale=1.0
    )


def test_derivatives_are_those_of_finite_differences():
    x, w, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (3,), (3,)))
    check_reverse_derivatives(layer(layer_norm), (x, w, b))


def test_rows_and_parameters_may_be_batched():
    x, w, b, u = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 5), (2, 5), (5,), (3, 5)))

    def product(function, x, w):
        gradient = torch.func.grad(lambda x, w: layer(function)(x, w, b).pow(3).sum(), (0, 1))
        return torch.func.vjp(gradient, x, w)[1]((u, u[0]))

    ours = torch.func.vmap(lambda x, w: product(layer_norm, x, w))(x, w)
    theirs = [product(layer_norm_ref, *example) for example in zip(x, w, strict=True)]
    for mine, parts in zip(ours, zip(*theirs, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(parts))


def test_parameter_gradients_of_many_rows_are_summed_in_chunks():
    """More rows than one chunk and one block of chunks have."""
    x, w, g = torch.randn(135, 4), torch.randn(4, requires_grad=True), torch.randn(135, 4)
    ours, theirs = (torch.autograd.grad(rms(f)(x, w), w, g)[0] for f in (rms_norm, rms_norm_ref))
    torch.testing.assert_close(ours, theirs)


def test_two_runs_give_the_same_bits():
    assert same_bits_twice(layer(layer_norm), [torch.randn(9, 70), torch.randn(70), torch.randn(70)])
