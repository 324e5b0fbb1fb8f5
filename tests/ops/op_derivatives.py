"""What the tests of twice-differentiable operations share."""

import torch


def double(*shape, seed=0):
    """Seeded fp64 values that require grad."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()


def all_derivatives(function, inputs, g, cotangents):
    """Output, gradients, and gradients of <cotangents, gradients>."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    g = g.detach().clone().requires_grad_()
    y = function(*inputs)
    first = torch.autograd.grad(y, inputs, g, create_graph=True)
    second = torch.autograd.grad(first, [g, *inputs], cotangents, allow_unused=True)
    return [y, *first, *(part for part in second if part is not None)]


def assert_error_within_twice_the_plain_one(kernel, plain, exact, scale=0.0):
    """The error rule; one rounding of the largest value (or of `scale`, if terms cancel) is allowed, in fp64 some."""
    for mine, theirs, reference in zip(kernel, plain, exact, strict=True):
        roundings = 64 if mine.dtype == torch.float64 else 1
        rounding = roundings * torch.finfo(mine.dtype).eps * max(reference.abs().max().item(), scale)
        error = (mine.double() - reference).abs().max().item()
        assert error <= 2 * (theirs.double() - reference).abs().max().item() + rounding


def with_threads(counts, run):
    """Results of run() at several thread counts."""
    before = torch.get_num_threads()
    results = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results
