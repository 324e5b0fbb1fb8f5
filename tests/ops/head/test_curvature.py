"""Head curvature: exact matrices, exact products, and a loss that uses them only where they hold."""

import sys

import pytest
import torch
from torch.autograd import grad

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.packed_symmetric import (
    pack_covariance,
    pack_covariance_ref,
    packed_matvec,
    packed_matvec_ref,
    packed_size,
    pair_products,
    pair_products_ref,
)
from hvp_engine.ops.head import curvature as module
from hvp_engine.ops.head.curvature import form_head_curvature, head_cost, head_curvature_ref
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

SIZES = [1, 2, 31, 65]


def make(tokens=7, d=5, classes=11, dtype=torch.float64):
    hidden, weight = torch.randn(tokens, d), torch.randn(classes, d)
    return (
        hidden.to(dtype),
        weight.to(dtype),
        torch.randn(classes).to(dtype),
        torch.randint(0, classes, (tokens,)),
    )


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_panels_of_pair_products_equal_the_reference(d, dtype):
    weight, center = torch.randn(13, d, dtype=dtype), torch.randn(d, dtype=dtype)
    pairs = packed_size(d)
    for first, last in ((0, pairs), (pairs // 3, pairs), (0, (pairs + 1) // 2), (pairs - 1, pairs)):
        out = torch.full((13, last - first), float("nan"), dtype=dtype)
        pair_products(weight, center, first, last, out)
        torch.testing.assert_close(out, pair_products_ref(weight, center, first, last))


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_packed_covariances_and_products_equal_the_reference(d, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = packed_size(d)
    moments, mean = torch.randn(6, pairs, dtype=wide), torch.randn(6, d, dtype=wide)
    packed, expected = torch.zeros(6, pairs, dtype=dtype), torch.zeros(6, pairs, dtype=dtype)
    for first, last in ((0, pairs // 2), (pairs // 2, pairs)):
        part = moments[:, first:last].contiguous()
        pack_covariance(part, mean, first, last, packed)
        pack_covariance_ref(part, mean, first, last, expected)
    tolerance = {} if dtype == wide else {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(packed, expected, **tolerance)
    vectors = torch.randn(3, 6, d, dtype=wide)
    torch.testing.assert_close(packed_matvec(packed, vectors), packed_matvec_ref(packed, vectors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d", SIZES[:3])
def test_the_matrices_are_the_dense_covariances(d, monkeypatch):
    monkeypatch.setattr(module, "PANEL_PAIRS", 37)
    monkeypatch.setattr(module, "PANEL_CLASSES", 4)
    monkeypatch.setattr(module, "PROBABILITY_BYTES", 3 * 11 * 8)
    hidden, weight, bias, _ = make(d=d)
    curvature = form_head_curvature(hidden, weight, bias=bias, dtype=torch.float64)
    u = torch.randn(4, 7, d, dtype=torch.float64)
    expected = torch.einsum("nij,knj->kni", head_curvature_ref(hidden, weight, bias), u)
    torch.testing.assert_close(curvature.apply(u), expected)
    torch.testing.assert_close(curvature.apply(u[0]), expected[0])


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_storage_rounds_no_more_than_its_precision(dtype, allowed):
    hidden, weight, bias, _ = make(tokens=20, d=33, classes=500, dtype=torch.float32)
    row_weight = torch.rand(20)
    u = torch.randn(20, 33)
    product = form_head_curvature(hidden, weight, row_weight, bias, dtype).apply(u)
    dense = head_curvature_ref(hidden.double(), weight.double(), bias.double())
    exact = torch.einsum("nij,nj->ni", dense, u.double()) * row_weight.unsqueeze(1)
    assert (product - exact).norm() <= allowed * exact.norm()


@pytest.mark.parametrize(
    "options", [{}, {"ignore_index": 3, "reduction": "sum"}, {"weighted": True, "label_smoothing": 0.2}]
)
def test_a_second_backward_to_the_hidden_states_uses_it_and_nothing_else(options, monkeypatch):
    options = dict(options)
    hidden, weight, bias, target = make()
    target[0] = 3
    if options.pop("weighted", False):
        options["class_weight"] = torch.rand(11, dtype=torch.float64)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    curvature = form_head_curvature(hidden, weight, bias=bias, dtype=torch.float64)
    u = torch.randn(3, 7, 5, dtype=torch.float64)
    general = []
    op = sys.modules[linear_cross_entropy.__module__]

    for name in ("head_hvp", "head_hidden_hvp"):
        route = getattr(op, name)
        monkeypatch.setattr(op, name, lambda *a, f=route: general.append(1) or f(*a))

    def gradients(f, **extra):
        h = hidden * 1.0
        loss = f(h, weight, target, bias, **options, **extra)
        return h, grad(loss, h, create_graph=True)[0]

    h, ours = gradients(linear_cross_entropy, curvature=curvature)
    g, theirs = gradients(linear_cross_entropy_ref)
    torch.testing.assert_close(grad(ours, h, u[0], retain_graph=True), grad(theirs, g, u[0], retain_graph=True))
    torch.testing.assert_close(
        grad(ours, h, u, is_grads_batched=True, retain_graph=True),
        grad(theirs, g, u, is_grads_batched=True, retain_graph=True),
    )
    assert not general
    torch.testing.assert_close(grad(ours, (h, weight), u[0]), grad(theirs, (g, weight), u[0]))
    assert general


def test_curvature_of_other_tokens_is_refused():
    hidden, weight, bias, target = make()
    curvature = form_head_curvature(hidden + 1.0, weight, bias=bias)
    with pytest.raises(ConfigurationError, match="belongs to other tokens"):
        linear_cross_entropy(hidden, weight, target, bias, curvature=curvature)
    with pytest.raises(ConfigurationError, match="do not fit a head curvature of 7 tokens"):
        curvature.apply(torch.randn(6, 5))
    with pytest.raises(ConfigurationError, match="float32, bfloat16 or float64"):
        form_head_curvature(hidden, weight, dtype=torch.float16)


def test_the_cost_model_says_when_forming_pays():
    cost = head_cost(1024, 384, 50304)
    assert cost.stored_bytes == 1024 * 384 * 385 // 2 * 4
    assert cost.form_flop == pytest.approx(7.7e12, rel=0.02)
    assert 60 < cost.form_flop / (cost.general_flop - cost.apply_flop) < 70
    assert head_cost(1024, 384, 50304, torch.bfloat16).stored_bytes == cost.stored_bytes // 2
    kept = head_cost(
        1024, 384, 50304, kept_logits=True
    )  # the general path is cheaper there, so that forming pays later
    assert kept.form_flop / (kept.general_flop - kept.apply_flop) > cost.form_flop / (
        cost.general_flop - cost.apply_flop
    )


def test_the_torch_backend_forms_and_applies_the_same_matrices(monkeypatch):
    hidden, weight, bias, _ = make()
    u = torch.randn(7, 5, dtype=torch.float64)
    native = form_head_curvature(hidden, weight, bias=bias, dtype=torch.float64).apply(u)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    plain = form_head_curvature(hidden, weight, bias=bias, dtype=torch.float64).apply(u)
    torch.testing.assert_close(native, plain)
