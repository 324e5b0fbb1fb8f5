"""Inputs, masks and comparisons shared by the attention tests."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def math_path(*args, **kwargs):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_qkv(lead, heads, key_heads, length, keys, width, value_width, dtype=torch.float64):
    shapes = ((heads, length, width), (key_heads, keys, width), (key_heads, keys, value_width))
    return [randn(*lead, *shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def all_derivatives(function, inputs):
    """Forward, gradients, and derivatives of <tangents, gradients> for inputs and output gradient."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    grad_out = randn(*out.shape, dtype=out.dtype, seed=10).requires_grad_()
    grads = torch.autograd.grad(out, inputs, grad_out, create_graph=True)
    tangents = [randn(*g.shape, dtype=g.dtype, seed=20 + i) for i, g in enumerate(grads)]
    second = torch.autograd.grad(grads, [*inputs, grad_out], tangents, materialize_grads=True)
    return [t.detach() for t in (out, *grads, *second)]


def assert_same(first, second, tolerance=1e-11):
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def masks(length, keys):
    """Every kind of mask, by name, for two batch entries and four heads; every row sees a key."""
    boolean = randn(length, keys, seed=30) > -0.5
    boolean[:, 0] = True
    padding = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    padding[1, ..., max(1, keys // 2) :] = False
    additive = randn(2, 4, length, keys, seed=31)
    return {
        "none": {},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": boolean},
        "key padding": {"attn_mask": padding},
        "per batch": {"attn_mask": boolean.expand(2, 1, length, keys) & padding},
        "additive": {"attn_mask": additive},
        "additive float32": {"attn_mask": additive[0].float()},
        "additive with -inf": {"attn_mask": additive.masked_fill(~boolean, -math.inf)},
        "per key": {"attn_mask": additive[0, 0, 0]},
        "per query": {"attn_mask": additive[0, 0, :, :1]},
        "scale": {"scale": 0.7, "attn_mask": additive[:1, :, :1]},
    }


MASKS = list(masks(1, 1))


def relative_error(value, exact):
    return ((value.double() - exact).norm() / exact.norm()).item()


def fused_heads(x):
    """(batch, length, 3 * 2 heads * 4) -> query, key, value as GPT splits them: strided views."""
    return [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in x.split(8, -1)]
