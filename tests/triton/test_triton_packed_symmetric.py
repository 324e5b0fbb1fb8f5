"""Head curvature on its Triton kernels, interpreted: packed matrices, formed and applied."""

from __future__ import annotations

import pytest
import torch

from hvp_engine.kernels.packed_symmetric import (
    pack_covariance,
    pack_covariance_ref,
    packed_matvec,
    packed_matvec_ref,
    packed_size,
    pair_products,
    pair_products_ref,
)
from hvp_engine.ops.head.curvature import form_head_curvature, head_curvature_ref
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

pytestmark = pytest.mark.usefixtures("on_triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 31, 129])
@pytest.mark.parametrize("count", [1, 11])
def test_packed_matrices_are_multiplied_with_all_vectors(count, d, dtype):
    packed = torch.randn(2, packed_size(d)).to(dtype)
    vectors = torch.randn(count, 2, d, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    exact = packed_matvec_ref(packed.double(), vectors.double())
    ours, theirs = ((f(packed, vectors).double() - exact).abs().max() for f in (packed_matvec, packed_matvec_ref))
    roundings = 64 if dtype == torch.float64 else 1
    assert ours <= 2 * theirs + roundings * torch.finfo(vectors.dtype).eps * exact.abs().max()


@pytest.mark.parametrize("d", [1, 2, 31, 129])
def test_every_pair_is_found_in_the_triangle(d):
    weight, center = torch.randn(9, d), torch.randn(d)
    moments = torch.randn(9, packed_size(d))
    middle = packed_size(d) // 3
    for first, last in ((0, packed_size(d)), (middle, middle + 1)):
        products = torch.empty(9, last - first)
        pair_products(weight, center, first, last, products)
        assert torch.equal(products, pair_products_ref(weight, center, first, last))
        ours, theirs = (torch.zeros(9, packed_size(d)) for _ in range(2))
        part = moments[:, first:last].contiguous()
        pack_covariance(part, weight, first, last, ours)
        pack_covariance_ref(part, weight, first, last, theirs)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_a_formed_curvature_is_the_dense_one(dtype, tolerance):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    hidden, weight, bias = (torch.randn(*shape, dtype=wide) for shape in ((4, 17), (30, 17), (30,)))
    u = torch.randn(3, 4, 17, dtype=wide)
    dense = head_curvature_ref(hidden.double(), weight.double(), bias.double())
    expected = torch.einsum("nij,knj->kni", dense, u.double())
    ours = form_head_curvature(hidden, weight, bias=bias, dtype=dtype).apply(u)
    assert (ours.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_loss_uses_its_curvature():
    hidden, weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(9, 6, dtype=torch.float64)
    target, u = torch.tensor([1, -100, 3, 8]), torch.randn(4, 6, dtype=torch.float64)
    curvature = form_head_curvature(hidden, weight, dtype=torch.float64)
    products = []
    for loss in (
        linear_cross_entropy(hidden, weight, target, curvature=curvature),
        linear_cross_entropy_ref(hidden, weight, target),
    ):
        (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
        products.append(torch.autograd.grad(gradient, hidden, u)[0])
    torch.testing.assert_close(*products)


def test_two_runs_give_the_same_bits():
    hidden, weight, u = torch.randn(3, 20), torch.randn(50, 20), torch.randn(2, 3, 20)
    first, second = (form_head_curvature(hidden, weight).apply(u) for _ in range(2))
    assert torch.equal(first, second)
