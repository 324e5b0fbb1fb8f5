"""Losses that differentiate inside: penalties on input gradients, differential equations, inner training steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.hessian import HessianOperator

# PyTorch scripts some of its own forward-mode formulas.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

Loss = Callable[[nn.Module, Any], Tensor]


class WrittenOut(nn.Module):
    """Layer normalisation in elementary operations: PyTorch's own has a wrong third derivative."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        shifted = x - x.mean(-1, keepdim=True)
        y: Tensor = shifted * torch.rsqrt((shifted * shifted).mean(-1, keepdim=True) + self.eps)
        return y * self.weight + self.bias


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[..., None, :] * torch.arange(1, 4, device=x.device)[:, None]
        out: Tensor = self.out(F.scaled_dot_product_attention(self.query(rows), self.key(rows), rows, is_causal=True))
        return out.sum(-2)


class Surprise(nn.Module):
    """The cross-entropy of a classifier as a function of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        target = torch.full(logits.shape[:-1], 2, device=x.device)
        return F.cross_entropy(logits.reshape(-1, 6), target.reshape(-1), reduction="none").reshape(*x.shape[:-1], 1)


def net(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), *inner, nn.Linear(4, 1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: net(nn.Tanh()),
    "silu": lambda: net(nn.SiLU()),
    "gelu": lambda: net(nn.GELU()),
    "softmax": lambda: net(nn.Softmax(-1)),
    "layer norm": lambda: net(nn.LayerNorm(4), nn.Tanh()),
    "rms norm": lambda: net(nn.RMSNorm(4, eps=1e-5), nn.Tanh()),
    "attention": Attention,
    "cross-entropy": Surprise,
}


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return ((slope.square().sum(1) - 1) ** 2).mean()


def residual(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
    return ((slope[:, 1] - 0.1 * bend[:, 0] + u[:, 0] * slope[:, 0]) ** 2).mean()


def inner_step(model: nn.Module, x: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())
    first = functional_call(model, parameters, (x,)).square().mean()
    slopes = torch.autograd.grad(first, list(parameters.values()), create_graph=True)
    fast = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), slopes, strict=True)}
    moved: Tensor = functional_call(model, fast, (x,)).square().mean()
    return moved


def scalar(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda point: model(point[None]).sum()


def slopes(model: nn.Module, x: Tensor) -> Tensor:
    return vmap(grad(scalar(model)))(x).square().sum(1).mean()


def bends(model: nn.Module, x: Tensor) -> Tensor:
    return vmap(hessian(scalar(model)))(x).square().flatten(1).sum(1).mean()


def bends_in_reverse(model: nn.Module, x: Tensor) -> Tensor:
    return vmap(jacrev(jacrev(scalar(model))))(x).square().flatten(1).sum(1).mean()


def bends_forward(model: nn.Module, x: Tensor) -> Tensor:
    return vmap(jacfwd(jacfwd(scalar(model))))(x).square().flatten(1).sum(1).mean()


def along(model: nn.Module, x: Tensor) -> Tensor:
    return jvp(model, (x,), (torch.ones_like(x),))[1].square().mean()


def gradients_per_sample(model: nn.Module, x: Tensor) -> Tensor:
    def of_one(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        value: Tensor = functional_call(model, parameters, (point[None],)).square().sum()
        return value

    found = vmap(grad(of_one), in_dims=(None, 0))(dict(model.named_parameters()), x)
    return torch.stack([g.square().flatten(1).sum(1) for g in found.values()]).sum(0).mean()


LOSSES: dict[str, Loss] = {
    f.__name__: f
    for f in (
        penalty,
        residual,
        inner_step,
        slopes,
        bends,
        bends_in_reverse,
        bends_forward,
        along,
        gradients_per_sample,
    )
}
POINTS = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name]()


def exact_products(model: nn.Module, loss: Loss, points: Tensor, vectors: Tensor) -> Tensor:
    """Products of the Hessian in float64, by PyTorch's own operations."""
    twin = copy.deepcopy(model).double()
    for name, child in list(twin.named_children()):
        if isinstance(child, nn.LayerNorm):
            setattr(twin, name, WrittenOut(child))
    parameters = list(twin.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        value = loss(twin, points.double())
    gradient = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    flat = torch.cat([(p * 0 if g is None else g).reshape(-1) for g, p in zip(gradient, parameters, strict=True)])
    rows = []
    for vector in vectors.double():
        row = torch.autograd.grad(flat @ vector, parameters, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(p * 0 if g is None else g).reshape(-1) for g, p in zip(row, parameters, strict=True)]))
    return torch.stack(rows).detach()


def check_products(model: nn.Module, loss: Loss) -> None:
    vectors = torch.randn(3, sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(2))
    expected = exact_products(model, loss, POINTS, vectors)
    for precision, tolerance in (("fp32", 2e-5), ("fp64", 1e-11)):
        found = he.hvp(model, loss, {"full": vectors}, data=[POINTS], precision=precision)["full"].double()
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", ["silu", "layer norm", "attention"])
def test_products_of_losses_that_differentiate_inside_are_right(model: str, loss: str) -> None:
    check_products(made(model), LOSSES[loss])


@pytest.mark.parametrize("model", MODELS)
def test_every_fused_operation_serves_a_penalty_and_an_inner_step(model: str) -> None:
    check_products(made(model), penalty)
    check_products(made(model), inner_step)


@pytest.mark.parametrize("loss", ["residual", "bends_in_reverse"])
def test_jobs_plans_and_the_doctor_take_such_losses(loss: str) -> None:
    model = made("silu")
    assert he.doctor(model, LOSSES[loss], data=[POINTS], seconds=4).ok
    he.plan(model, LOSSES[loss], data=[POINTS], steps=4)
    whole = he.slq(model, LOSSES[loss], data=[POINTS], steps=4, probes=1)["full"]
    single = he.slq(model, LOSSES[loss], data=[POINTS], steps=4, probes=1, microbatch=1)["full"]
    np.testing.assert_allclose(whole.alphas, single.alphas, rtol=1e-3, atol=1e-5)


def test_a_training_step_inside_is_seen_to_be_no_mean_over_samples() -> None:
    with pytest.raises(ConfigurationError, match="not a plain mean over samples"):
        he.slq(made("silu"), inner_step, data=[POINTS], steps=4, probes=1, microbatch=1)


def test_a_loss_that_asks_whether_gradients_are_on_is_looked_at_with_gradients() -> None:
    asked = []

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return model(x).square().mean() * (1 if torch.is_grad_enabled() else 7)

    he.slq(made("tanh"), loss, data=[POINTS], steps=3, probes=1, microbatch=1)
    assert all(asked[asked.index(False) + 1 :]) and asked.count(False) <= 1


def test_the_curvature_of_a_head_serves_a_loss_with_a_penalty() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 400))
    data = [(torch.randn(8, 4), torch.randint(0, 400, (8,)))]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].detach().requires_grad_(True)
        value = F.cross_entropy(model(x), batch[1])
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return value + 8 * slope.square().sum()

    operator = HessianOperator(model, loss, {"first": ["0.*"]}, data=data)
    vectors = {"first": torch.randn(2, 30)}
    plain = operator.matmat(vectors)["first"]
    operator.form_head_curvature({"first": 10**6})
    assert operator.head_curvature is not None and "not used" not in operator.head_curvature
    torch.testing.assert_close(operator.matmat(vectors)["first"], plain, rtol=1e-4, atol=1e-5)
