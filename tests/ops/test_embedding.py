"""Embedding: lookups of PyTorch's, a deterministic weight gradient, derivatives of any order."""

import pytest
import torch
from loss_checks import check_derivatives, same_bits_on_any_threads
from torch.utils.checkpoint import checkpoint

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.embedding import embedding, embedding_ref

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

TOKENS = torch.tensor([[0, 1, 1], [3, 2, 3]])


def test_derivatives_are_those_of_finite_differences():
    weight = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    check_derivatives(lambda w: embedding(TOKENS, w).square(), (weight,))


@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_derivatives_of_all_orders_agree_with_the_reference(padding_idx):
    weight = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (embedding, embedding_ref):
        value = function(TOKENS, weight, padding_idx).pow(4).sum()
        orders = [value]
        for _ in range(3):
            orders.append(torch.autograd.grad(orders[-1].sum(), weight, create_graph=True)[0])
        results.append(orders)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "tokens"), [(1, 1, 5), (2, 31, 0), (129, 600, 40), (4097, 3, 1000)])
def test_the_weight_gradient_is_as_exact_as_the_reference(dtype, rows, columns, tokens):
    index = torch.randint(0, rows, (tokens,))
    upstream = torch.randn(tokens, columns).to(dtype)

    def gradient(function, dtype):
        weight = torch.zeros(rows, columns, dtype=dtype, requires_grad=True)
        return torch.autograd.grad(function(index, weight), weight, upstream.to(dtype))[0]

    exact = gradient(embedding_ref, torch.float64)
    error, allowed = ((gradient(f, dtype).double() - exact).norm() for f in (embedding, embedding_ref))
    assert error <= 2 * allowed + torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_functional_transforms_agree_with_the_reference(padding_idx):
    func = torch.func
    weights = torch.randn(3, 4, 2, dtype=torch.float64)
    tokens = torch.randint(0, 4, (3, 5))

    def results(f):
        def loss(t, w):
            return f(t, w, padding_idx).pow(3).sum()

        hessian = func.jacrev(func.jacrev(loss, argnums=1), argnums=1)
        return [
            func.vmap(hessian)(tokens, weights),
            func.vmap(hessian, in_dims=(None, 0))(tokens[0], weights),
            func.vmap(hessian, in_dims=(0, None))(tokens, weights[0]),
            func.jvp(lambda w: loss(tokens, w), (weights[0],), (weights[1],))[1],
            func.vmap(lambda w: f(tokens[0], w, padding_idx), in_dims=1)(weights.movedim(0, 1)),
        ]

    for a, b in zip(results(embedding), results(embedding_ref), strict=True):
        torch.testing.assert_close(a, b)


def test_forward_over_reverse_agrees_with_the_reference():
    weight, tangent = torch.randn(2, 4, 2, dtype=torch.float64)
    ours, theirs = (
        torch.func.jvp(torch.func.grad(lambda w, f=f: f(TOKENS, w).pow(3).sum()), (weight,), (tangent,))[1]
        for f in (embedding, embedding_ref)
    )
    torch.testing.assert_close(ours, theirs)


def test_batched_gradients_agree_with_single_ones():
    weight = torch.randn(4, 2, requires_grad=True)
    value = embedding(TOKENS, weight, 1)
    vectors = torch.randn(3, *value.shape)
    (many,) = torch.autograd.grad(value, weight, vectors, is_grads_batched=True, retain_graph=True)
    for vector, gradient in zip(vectors, many, strict=True):
        assert torch.equal(torch.autograd.grad(value, weight, vector, retain_graph=True)[0], gradient)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    weight = torch.randn(50, 70, requires_grad=True)
    tokens, upstream = torch.randint(0, 50, (3000,)), torch.randn(3000, 70)
    assert same_bits_on_any_threads(lambda: [*torch.autograd.grad(embedding(tokens, weight), weight, upstream)])


@pytest.mark.parametrize("token", [4, -1, 2**40])
def test_a_token_outside_of_the_table_is_a_clear_error(token):
    weights = torch.randn(2, 4, 3)
    with pytest.raises(ConfigurationError, match=f"Token {token} is not a row of the embedding"):
        embedding(torch.tensor([0, token]), weights[0])
    with pytest.raises(ConfigurationError, match="is not a row of the embedding"):
        torch.func.vmap(lambda w: embedding(torch.tensor([0, token]), w))(weights)


def test_other_bad_input_is_a_clear_error():
    with pytest.raises(ConfigurationError, match="integer indices"):
        embedding(torch.zeros(2), torch.randn(4, 3))
    with pytest.raises(ConfigurationError, match="padding_idx is 4, but the table has 4 rows"):
        embedding(torch.zeros(2, dtype=torch.long), torch.randn(4, 3), 4)


def test_it_works_under_checkpointing_and_autocast():
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def second(function, leaf):
        (first,) = torch.autograd.grad(function(TOKENS, leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), leaf)[0]

    again = second(lambda *args: checkpoint(embedding, *args, use_reentrant=False), weight)
    assert torch.equal(again, second(embedding, weight))
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            leaf = weight.detach().to(dtype).requires_grad_()
            assert embedding(TOKENS, leaf).dtype == torch.nn.functional.embedding(TOKENS, leaf).dtype
            torch.testing.assert_close(second(embedding, leaf), second(embedding_ref, leaf))
