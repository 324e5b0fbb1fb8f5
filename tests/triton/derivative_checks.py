"""Checks shared by the tests of the row kernels: value, gradients and second derivatives against plain PyTorch."""

from __future__ import annotations

import torch
from op_derivatives import all_derivatives, assert_error_within_twice_the_plain_one

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SIZES = [1, 2, 31, 129, 4097]


def check_against_plain(fused, plain, inputs, scale=0.0):
    """Value and derivatives of two orders: the error against float64 is at most twice the plain one's.

    One rounding of the largest value, or of `scale` where that is larger, is always allowed.
    """
    with torch.no_grad():
        g = torch.randn_like(plain(*inputs))
    cotangents = [torch.randn_like(x) for x in inputs]
    wide = [[x.double() for x in tensors] for tensors in (inputs, [g], cotangents)]
    exact = all_derivatives(plain, wide[0], wide[1][0], wide[2])
    ours = all_derivatives(fused, inputs, g, cotangents)
    theirs = all_derivatives(plain, inputs, g, cotangents)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert_error_within_twice_the_plain_one(ours, theirs, exact, scale)


def check_reverse_derivatives(function, inputs):
    """First and second derivatives in reverse mode by finite differences."""
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def same_bits_twice(function, inputs):
    """Whether two runs give the same bits in the value and all derivatives."""
    g = torch.randn_like(function(*inputs))
    cotangents = [torch.randn_like(x) for x in inputs]
    first, second = (all_derivatives(function, inputs, g, cotangents) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def strided(*shape, dtype=torch.float32):
    """Random numbers that are not contiguous."""
    return torch.randn(*shape[::-1], dtype=torch.float64).to(dtype).permute(*reversed(range(len(shape))))
