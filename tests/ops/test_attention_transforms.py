"""Fused attention inside models, function transforms, checkpointing and autocast, and where it falls back."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from attention_cases import all_derivatives, assert_same, fused_heads, make_qkv, math_path, randn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import hvp_engine.kernels.attention as kernels
from hvp_engine.kernels import loader
from hvp_engine.ops import attention_autograd
from hvp_engine.ops.attention import attention, attention_ref

# PyTorch itself loads its forward-mode rules through a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


class TinyBlock(torch.nn.Module):
    """A causal block: the second derivative goes through projections, attention and a nonlinearity."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.qkv = torch.nn.Linear(8, 24, dtype=torch.float64)
        self.out = torch.nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, x):
        heads = self.function(*fused_heads(self.qkv(x)), is_causal=True)
        return x + torch.tanh(self.out(heads.transpose(1, 2).flatten(-2)))


def block_loss(function):
    model = torch.nn.Sequential(TinyBlock(function), TinyBlock(function))
    return model, lambda parameters: functional_call(model, parameters, (randn(2, 5, 8),)).pow(3).mean()


def test_hessian_vector_products_of_each_parameter_equal_the_math_path():
    products = []
    for function in (attention, math_path):
        model, loss = block_loss(function)
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad(loss(parameters), list(parameters.values()), create_graph=True)
        for i, (g, p) in enumerate(zip(grads, parameters.values(), strict=True)):
            products += torch.autograd.grad(g, p, randn(*p.shape, seed=i), retain_graph=True)
    half = len(products) // 2
    assert_same(products[:half], products[half:])


def test_second_backward_computes_only_what_the_block_needs(monkeypatch):
    calls = []

    def spy(inputs, grad_out, tangents, wanted):
        calls.append(([t is not None for t in tangents], list(wanted)))
        return kernels.attention_second(inputs, grad_out, tangents, wanted)

    monkeypatch.setattr(attention_autograd, "attention_second", spy)
    weights = [randn(4, 4, seed=i).requires_grad_() for i in range(3)]
    query, key, value = (randn(1, 5, 4) @ w for w in weights)
    loss = attention(query, key, value).pow(2).sum()
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    for i in range(3):
        torch.autograd.grad(grads[i].sum(), weights[i], retain_graph=True)
        only = [j == i for j in range(3)]
        assert calls.pop() == (only, [*only, True])
    assert not calls


TRANSFORMS = {
    "vjp": lambda f, x, t: vjp(f, *x)[1](f(*t)),
    "jvp": jvp,
    "jvp of one input": lambda f, x, t: jvp(lambda k: f(x[0], k, x[2]), (x[1],), (t[1],)),
    "vmap": lambda f, x, t: vmap(f)(*x),
    "vmap of one input": lambda f, x, t: vmap(lambda q: f(q, x[1][0], x[2][0]))(x[0]),
    "vmap over the last dimension": lambda f, x, t: vmap(f, in_dims=3, out_dims=3)(
        *(y[0, :, :, :, None].expand(-1, -1, -1, 2) for y in x)
    ),
    "grad": lambda f, x, t: grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2))(*x),
    "vmap of grad": lambda f, x, t: vmap(grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2)))(*x),
    "jvp of grad": lambda f, x, t: jvp(grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2)), x, t),
    "grad of jvp": lambda f, x, t: grad(lambda *x: jvp(f, x, t)[1].pow(2).sum(), (0, 1, 2))(*x),
    "vjp of grad": lambda f, x, t: vjp(grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2)), *x)[1](t),
    "vmap of jvp of grad": lambda f, x, t: vmap(
        lambda *t: jvp(grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2)), x, t)[1]
    )(*(torch.stack([y, 2 * y]) for y in t)),
    "vmap of vjp of grad": lambda f, x, t: vmap(vjp(grad(lambda *x: f(*x).pow(3).sum(), (0, 1, 2)), *x)[1])(
        tuple(torch.stack([y, 2 * y]) for y in t)
    ),
    "hessian": lambda f, x, t: hessian(lambda q: f(q, x[1][0, :1], x[2][0, :1]).pow(3).sum())(x[0][0, :1]),
}


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": randn(5, 5, seed=9)}], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_function_transforms_equal_those_of_the_reference(name, options):
    x = tuple(make_qkv((2,), 3, 3, 5, 5, 4, 4))
    t = tuple(y.flip(-1) for y in x)
    results = [TRANSFORMS[name](partial(f, **options), x, t) for f in (attention, attention_ref)]
    ours, expected = (torch.utils._pytree.tree_leaves(r) for r in results)
    assert_same(ours, expected)


def test_batched_gradients_through_both_backward_passes():
    results = []
    for function in (attention, attention_ref):
        x = [y.requires_grad_() for y in make_qkv((2,), 3, 3, 5, 5, 4, 4)]
        out = function(*x, is_causal=True)
        first = torch.autograd.grad(
            out, x, torch.stack([out, out * 2]).detach(), is_grads_batched=True, retain_graph=True
        )
        grads = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
        many = [randn(5, *y.shape, seed=i) for i, y in enumerate(x)]
        results.append([*first, *torch.autograd.grad(grads, x, many, is_grads_batched=True)])
    assert_same(*results)


def test_forward_mode_without_function_transforms():
    results = []
    for function in (attention, attention_ref):
        with forward_ad.dual_level():
            x = make_qkv((2,), 3, 3, 5, 5, 4, 4)
            dual = [forward_ad.make_dual(y.requires_grad_(), y.detach().flip(-1)) for y in x]
            loss = function(*dual, is_causal=True).pow(3).sum()
            grads = torch.autograd.grad(loss, dual, create_graph=True)
            results.append([forward_ad.unpack_dual(y).tangent.detach() for y in (loss, *grads)])
    assert_same(*results)


@pytest.mark.parametrize("transform", ["backward", "grad", "jvp"])
def test_a_mask_that_needs_a_gradient_gets_it_from_the_reference(transform):
    x, mask = make_qkv((2,), 3, 3, 5, 5, 4, 4), randn(5, 5, seed=7)

    def derivative(function):
        loss = lambda m: function(*x, m).pow(2).sum()  # noqa: E731
        if transform == "backward":
            leaf = mask.clone().requires_grad_()
            return torch.autograd.grad(loss(leaf), leaf)[0]
        return grad(loss)(mask) if transform == "grad" else jvp(loss, (mask,), (mask,))[1]

    assert torch.equal(derivative(attention), derivative(attention_ref))


def test_checkpointing_gives_the_same_second_derivatives():
    x = make_qkv((2,), 3, 3, 5, 5, 4, 4)
    function = partial(attention, is_causal=True)
    again = all_derivatives(lambda *x: checkpoint(function, *x, use_reentrant=False), x)
    assert all(torch.equal(a, b) for a, b in zip(again, all_derivatives(function, x), strict=True))


def test_autocast_casts_as_it_does_for_pytorch():
    x = make_qkv((2,), 3, 3, 5, 5, 4, 4, dtype=torch.float32)
    low = [y.bfloat16() for y in x]
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*x, is_causal=True)
        assert attention_ref(*x).dtype == torch.bfloat16
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attention(*low, is_causal=True))


@pytest.mark.parametrize("missing", ["extension", "backend"])
def test_the_reference_serves_without_native_kernels(missing, monkeypatch):
    if missing == "extension":
        monkeypatch.setattr(loader, "missing_reason", "it was not built")
        monkeypatch.setattr(loader, "_warned", True)
    else:
        monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    monkeypatch.setattr(sys.modules[attention.__module__], "fused_attention", None)
    x = make_qkv((2,), 3, 3, 5, 5, 4, 4)
    assert_same(all_derivatives(attention, x), all_derivatives(attention_ref, x), 0)


def test_traced_graphs_contain_the_reference():
    x = make_qkv((2,), 3, 3, 5, 5, 4, 4)
    hvp = lambda *x: jvp(grad(lambda q: attention(q, *x[1:]).pow(3).sum()), x[:1], (x[0].flip(-1),))[1]  # noqa: E731
    expected = hvp(*x)
    traced = make_fx(hvp)(*x)
    assert_same([traced(*x)], [expected])
    with FakeTensorMode() as mode:
        assert attention(*(mode.from_tensor(y) for y in x)).shape == x[0].shape


def test_half_precision_goes_to_the_reference():
    x = make_qkv((2,), 3, 3, 5, 5, 4, 4, dtype=torch.float16)
    assert torch.equal(attention(*x), attention_ref(*x))
