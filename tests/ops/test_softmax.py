"""Softmax: any dimension, two exact derivatives, every transform."""

import pytest
import torch
from loss_checks import assert_error_rule, check_derivatives, same_bits_on_any_threads, values_and_products
from torch.utils.checkpoint import checkpoint

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.softmax import softmax, softmax_ref

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def weighted_squares(function, dim=-1):
    """A scalar with a gradient and a Hessian that are not zero."""

    def loss(x):
        p = function(x, dim)
        return (p.square() * torch.linspace(1, 2, x.numel(), dtype=x.dtype).view_as(x)).sum()

    return loss


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), -1), ((2, 3, 2), 1), ((5,), 0), ((2, 1), -1)])
def test_derivatives_are_those_of_finite_differences(shape, dim):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    check_derivatives(lambda x: softmax(x, dim), (x,))


@pytest.mark.parametrize("columns", [1, 2, 31, 129, 4097])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_it_equals_the_reference_at_awkward_sizes(columns, dim):
    x = torch.randn(3, 2, columns, dtype=torch.float64).movedim(-1, dim)
    direction = [torch.randn_like(x)]
    ours, theirs = (values_and_products(weighted_squares(f, dim), [x], direction) for f in (softmax, softmax_ref))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(softmax(x, dim), softmax_ref(x, dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [129, 4097])
def test_its_error_is_at_most_twice_the_plain_one(dtype, columns):
    x, weight = 3 * torch.randn(50, columns), torch.randn(50, columns)
    direction = [torch.randn(50, columns).to(dtype)]
    fused, plain = (lambda x, f=f: f(x * 1.0) * weight.to(x.dtype) for f in (softmax, softmax_ref))
    assert_error_rule(fused, plain, [x.to(dtype)], direction)


def test_scalars_empty_inputs_casts_and_infinities_are_those_of_pytorch():
    cases = [torch.tensor(2.0), torch.zeros(0, 3), torch.zeros(3, 0), torch.randn(2, 3).half()]
    inf = float("inf")
    cases += [torch.tensor([[-inf, 0.0, 1.0], [-inf, -inf, -inf], [inf, 0.0, 1.0]])]
    for x in cases:
        torch.testing.assert_close(softmax(x, -1), softmax_ref(x, -1), equal_nan=True)
    low = torch.randn(2, 3, dtype=torch.bfloat16)
    assert softmax(low, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(ConfigurationError, match="dim=2 is none of the input's 2 dimensions"):
        softmax(low, 2)


def test_functional_transforms_agree_with_the_reference():
    func = torch.func
    x, many = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)

    def results(f):
        loss = weighted_squares(f)
        return [
            func.jvp(loss, (x,), (many[0],))[1],
            func.jvp(func.grad(loss), (x,), (many[0],))[1],
            func.vmap(lambda v: func.jvp(func.grad(loss), (x,), (v,))[1])(many),
            func.hessian(loss)(x),
            func.jacrev(func.jacrev(loss))(x),
            func.vmap(func.hessian(loss))(many),
            func.vmap(lambda v: func.vjp(f, x)[1](v)[0])(many),
        ]

    for a, b in zip(results(softmax), results(softmax_ref), strict=True):
        torch.testing.assert_close(a, b)


def test_batched_gradients_checkpointing_and_autocast_agree_with_plain_calls():
    x = torch.randn(3, 4, requires_grad=True)
    loss = weighted_squares(softmax)
    (one,) = torch.autograd.grad(loss(x), x, create_graph=True)
    vectors = torch.randn(5, 3, 4)
    (many,) = torch.autograd.grad(one, x, vectors, is_grads_batched=True, retain_graph=True)
    for vector, product in zip(vectors, many, strict=True):
        torch.testing.assert_close(torch.autograd.grad(one, x, vector, retain_graph=True)[0], product)
    ours, theirs = (
        values_and_products(f, [x], [vectors[0]]) for f in (lambda x: checkpoint(loss, x, use_reentrant=False), loss)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        for value in (x, x.bfloat16()):
            assert softmax(value).dtype == softmax_ref(value, -1).dtype


def test_the_bits_do_not_depend_on_the_number_of_threads():
    x = torch.randn(257, 1031)
    assert same_bits_on_any_threads(lambda: values_and_products(weighted_squares(softmax), [x], [x])[1:])
