"""Third and further derivatives of the fused operations, against the same functions in elementary operations."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vjp, vmap
from written_out_cases import CASES, normal

from hvp_engine import ops
from hvp_engine.ops.swap import twice_differentiable

# PyTorch scripts some of its own forward-mode formulas.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CHAINS = {
    "reverse thrice": (jacrev, jacrev, jacrev),
    "forward over reverse over reverse": (jacfwd, jacrev, jacrev),
    "reverse over forward over reverse": (jacrev, jacfwd, jacrev),
    "reverse over forward": (jacrev, jacfwd),
    "forward over reverse": (jacfwd, jacrev),
    "forward over forward": (jacfwd, jacfwd),
    "reverse over forward over forward": (jacrev, jacfwd, jacfwd),
}


def bent(value):
    """A scalar whose derivatives of every order depend on all entries of a value."""
    return (value * torch.sin(value + 1)).sum()


def derivatives(function, inputs, order):
    """Gradients of a scalar, of a scalar of those, and so on."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    value, found = bent(function(*inputs)), []
    for number in range(order):
        parts = torch.autograd.grad(value, inputs, create_graph=number + 1 < order, allow_unused=True)
        parts = [torch.zeros_like(x) if part is None else part for part, x in zip(parts, inputs, strict=True)]
        found += parts
        value = sum(torch.sin(normal(*part.shape, seed=number) + part).mul(part).sum() for part in parts)
    return found


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_order_three_and_four_are_those_of_the_function(name):
    function, plain, inputs = CASES[name]
    ours, theirs = derivatives(function, inputs, 4), derivatives(plain, inputs, 4)
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine - right).norm() <= 1e-5 * right.norm() + 1e-12
    for mine, right in zip(ours[: 3 * len(inputs)], theirs, strict=False):
        assert (mine - right).norm() <= 1e-10 * right.norm() + 1e-12


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", ["silu", "swiglu", "softmax", "weighted cross_entropy", "layer_norm", "rms_norm"])
def test_transforms_nest_in_every_order(name, chain):
    check_chain(name, CHAINS[chain])


@pytest.mark.parametrize("name", ["masked attention", "grouped causal attention", "linear_cross_entropy", "embedding"])
def test_transforms_nest_around_large_operations(name):
    check_chain(name, CHAINS["forward over reverse over reverse"])
    check_chain(name, CHAINS["reverse over forward"])
    check_chain(name, CHAINS["forward over forward"])


def check_chain(name, transforms):
    function, plain, inputs = CASES[name]

    def scalar(f):
        def along(t):
            moved = [x * (1 + t[0] * number + t[1]) for number, x in enumerate(inputs)]
            return bent(f(*moved)) + bent(f(inputs[0] * t[0] * t[1], *inputs[1:]))

        return along

    results = []
    for f in (function, plain):
        derivative = scalar(f)
        for transform in reversed(transforms):
            derivative = transform(derivative)
        results.append(derivative(torch.tensor([0.3, 0.2], dtype=torch.float64)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_what_vjp_returns_may_be_called_when_its_transform_has_ended():
    x = normal(4, 5)
    results = []
    for silu in (ops.silu, lambda y: y * torch.sigmoid(y)):
        _, pull = vjp(lambda y, f=silu: grad(lambda z: bent(grad(lambda w: bent(f(w)))(z)))(y), x)
        results += [pull(torch.ones_like(x))[0], vmap(pull)(torch.eye(20, dtype=x.dtype).view(20, 4, 5))[0]]
    torch.testing.assert_close(results[:2], results[2:])


def test_per_sample_curvature_of_an_unchanged_network_is_right():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.SiLU(), torch.nn.Linear(4, 1))
    net = net.double()
    x = normal(5, 3)
    curvature = vmap(hessian(lambda t: net(t).squeeze()))
    with twice_differentiable():
        found = curvature(x)
    torch.testing.assert_close(found, curvature(x))


def test_several_cotangents_go_through_one_pass_of_a_third_derivative():
    x = normal(3, 4).requires_grad_()
    (first,) = torch.autograd.grad(bent(ops.gelu(x)), x, create_graph=True)
    (second,) = torch.autograd.grad(bent(first), x, create_graph=True)
    rows = normal(5, 3, 4, seed=1)
    (batched,) = torch.autograd.grad(second, x, rows, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(second, x, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(batched, torch.stack(single))


def test_a_product_saves_nothing_for_a_third_derivative():
    x = normal(8, 8).requires_grad_()
    (first,) = torch.autograd.grad(bent(ops.silu(x)), x, create_graph=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        torch.autograd.grad(first, x, torch.ones_like(x), retain_graph=True)
        assert not saved
        torch.autograd.grad(first, x, torch.ones_like(x), create_graph=True)
    assert saved
