"""Checks shared by the tests of the losses: derivatives in float64, and the error rule in lower precision."""

import torch
from torch.autograd import grad, gradcheck, gradgradcheck


def check_derivatives(function, inputs):
    """First and second derivatives by finite differences: reverse, forward-over-reverse, batched."""
    options = {"fast_mode": True, "check_batched_grad": True}
    assert gradcheck(function, inputs, check_forward_ad=True, **options)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, **options)


def values_and_products(function, inputs, directions):
    """The value, its gradients, and the Hessian-vector products along the directions."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = grad(value.sum(), leaves, create_graph=True)
    products = grad(gradients, leaves, directions)
    return [t.detach() for t in (value, *gradients, *products)]


def assert_error_rule(fused, plain, inputs, directions):
    """The fused error against float64 is at most twice the plain one in the same dtype (root mean square)."""

    def wide(tensors):
        return [t.double() for t in tensors]

    exact = values_and_products(plain, wide(inputs), wide(directions))
    ours = values_and_products(fused, inputs, directions)
    theirs = values_and_products(plain, inputs, directions)
    for name, e, a, b in zip(range(len(exact)), exact, ours, theirs, strict=True):
        assert a.dtype == b.dtype
        # The error of a single number is luck: plain PyTorch may happen to hit it, so one rounding is always
        # allowed.
        slack = torch.finfo(a.dtype).eps * e.square().mean().sqrt()
        error, allowed = ((x.double() - e).square().mean().sqrt() for x in (a, b))
        assert error <= 2 * allowed + slack, f"output {name}: {error:.2e} against {allowed:.2e}"


def same_bits_on_any_threads(function):
    """Compares a list of tensors computed with one and with several threads, bit for bit."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(function())
    finally:
        torch.set_num_threads(before)
    return all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
