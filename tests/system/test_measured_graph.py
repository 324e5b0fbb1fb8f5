import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from hvp_engine.system.measured_graph import build_and_list_dtypes, build_and_weigh


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(16, 3)


def first_pass(model, loss):
    return lambda: torch.autograd.grad(loss(), list(model.parameters()), create_graph=True, allow_unused=True)


def roots(gradients):
    return gradients


def weighed(model, loss):
    return build_and_weigh(first_pass(model, loss), roots, list(model.parameters()))[1]


def test_a_graph_that_may_not_be_watched_weighs_as_much_as_one_that_may():
    model, x = made()

    def plain():
        return torch.tanh(model(x)).square().mean()

    calls = []

    def unwatchable():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("torch.func.{grad, vjp, jacrev, hessian} don't yet support saved tensor hooks.")
        return plain()

    assert weighed(model, unwatchable) == weighed(model, plain) > 16 * 8 * 4
    assert len(calls) == 2


def test_transforms_inside_a_loss_are_weighed():
    model, x = made()

    def loss():
        return vmap(grad(lambda t: model(t).sum()))(x).square().mean()

    assert weighed(model, loss) > 16 * 8 * 4
    found = build_and_list_dtypes(first_pass(model, loss), roots)[1]
    assert found == {torch.float32}


def test_an_error_of_the_loss_is_passed_on():
    with pytest.raises(RuntimeError, match="other"):
        build_and_weigh(lambda: (_ for _ in ()).throw(RuntimeError("other")), roots, [])
