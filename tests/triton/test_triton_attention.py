"""Attention on its Triton kernels, interpreted on the CPU, against plain PyTorch."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

from attention_cases import (
    MASKS,
    all_derivatives,
    assert_same,
    fused_heads,
    make_qkv,
    masks,
    randn,
)

from hvp_engine.kernels import registry
from hvp_engine.kernels.attention import attention_second, statistics_like
from hvp_engine.kernels.records import AttentionInputs
from hvp_engine.kernels.triton import attention as launches
from hvp_engine.kernels.triton import attention_tiling, attention_weights
from hvp_engine.kernels.triton.attention_tiling import Tiling
from hvp_engine.ops import attention_autograd
from hvp_engine.ops.attention import attention, attention_ref

F32 = torch.float32
REAL = {name: getattr(attention_tiling, name) for name in ("FLOAT32", "_HALF", "_NARROW")}


@pytest.fixture(autouse=True, params=["tiles", "matrices"])
def on_triton(request, interpreter, monkeypatch):
    """Serves attention by its Triton kernels, with tiles larger than a GPU takes: an interpreter's time is per tile.

    Derivatives come from tiles, or from whole matrices of scores.
    """
    monkeypatch.setattr(registry, "_BACKENDS", (registry.Backend("triton", lambda device: None),))
    large = dict.fromkeys(REAL["_HALF"], Tiling(64, 32, 32, 64, 4, 2))
    monkeypatch.setattr(attention_tiling, "FLOAT32", large)
    if request.param == "matrices":
        strip = attention_tiling.Strip(entries=1, key_heads=1, rows=32)
        monkeypatch.setattr(launches, "matrix_strip", lambda dtype, *_: strip if dtype == F32 else None)
    else:
        monkeypatch.setattr(launches, "matrix_strip", lambda *_: None)
    monkeypatch.setattr(attention_weights, "BLOCK", 64)
    registry.forget_choices()
    yield request.param
    registry.forget_choices()


@pytest.fixture
def served(on_triton):
    """The dtype that the package computes in this way."""
    return F32 if on_triton == "matrices" else torch.bfloat16


def assert_error_rule(inputs, dtype=F32, **options):
    """At most twice plain PyTorch's error in the same dtype, for the values and all derivatives."""
    inputs = [x.to(dtype) for x in inputs]
    mask = options.get("attn_mask")
    widest = options if mask is None or mask.dtype == torch.bool else {**options, "attn_mask": mask.double()}
    exact = all_derivatives(partial(attention_ref, **widest), [x.double() for x in inputs])
    plain = all_derivatives(partial(attention_ref, **options), inputs)
    ours = all_derivatives(partial(attention, **options), inputs)
    noise = torch.finfo(dtype).eps / 2  # a product of few numbers can come out exact by luck
    for value, reference, truth in zip(ours, plain, exact, strict=True):
        assert value.dtype == dtype
        error, allowed = ((x.double() - truth).norm() for x in (value, reference))
        assert error <= 2 * allowed + noise * max(truth.norm(), 1.0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 16, 16), (2, 31, 40, 16), (31, 2, 16, 40), (129, 33, 64, 64)], ids=str)
def test_values_and_derivatives_of_awkward_sizes(served, sizes, causal):
    assert_error_rule(make_qkv((), 1, 1, *sizes), served, is_causal=causal)


def test_the_tiles_of_a_gpu(monkeypatch, served):
    for name, table in REAL.items():
        monkeypatch.setattr(attention_tiling, name, table)
    assert_error_rule(make_qkv((), 1, 1, 33, 20, 24, 40), served)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_shared_key_heads(served, mask):
    options = masks(33, 31)[mask]
    given = options.get("attn_mask")
    if given is not None:
        given = given[:, :2] if given.dim() == 4 and given.shape[1] == 4 else given[:2] if given.dim() == 3 else given
        options["attn_mask"] = given if given.dtype == torch.bool else given.float()
    assert_error_rule(make_qkv((2,), 2, 1, 33, 31, 16, 16), served, enable_gqa=True, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_float32_sums(dtype):
    mask = randn(33, 45, seed=31).to(dtype)
    assert_error_rule(make_qkv((), 2, 1, 33, 45, 72, 40), dtype, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("additive", [False, True])
def test_rows_that_see_no_key_give_zeros_and_finite_derivatives(additive):
    mask = randn(5, 7) > 0
    mask[1] = False
    given = torch.zeros(5, 7).masked_fill(~mask, -math.inf) if additive else mask
    inputs = make_qkv((), 2, 2, 5, 7, 4, 4, dtype=F32)
    ours = all_derivatives(partial(attention, attn_mask=given), inputs)
    assert torch.equal(ours[0][:, 1], torch.zeros(2, 4))
    assert_same(ours, all_derivatives(partial(attention_ref, attn_mask=given), inputs), 1e-5)


@pytest.mark.parametrize("low", [torch.finfo(F32).min, -1e9])
def test_rows_masked_by_a_large_negative_number_stay_probabilities(low):
    inputs = make_qkv((), 2, 2, 5, 7, 4, 4, dtype=F32)
    mask = torch.zeros(5, 7)
    mask[1], mask[3, 2:] = low, low
    ours = all_derivatives(partial(attention, attn_mask=mask), inputs)
    assert_same(ours, all_derivatives(partial(attention_ref, attn_mask=mask), inputs), 1e-5)
    torch.testing.assert_close(ours[0][:, 1], inputs[2].mean(-2))


@pytest.mark.parametrize("of", ["value", "key"])
def test_a_large_common_offset_does_not_cancel(served, of):
    query, key, value = make_qkv((), 1, 1, 33, 129, 16, 16)
    offset = {of: 100.0 if of == "value" else 3.0}
    assert_error_rule([query, key + offset.get("key", 0.0), value + offset.get("value", 0.0)], served)


def test_strided_heads_are_read_and_results_merge_without_a_copy():
    x = randn(2, 17, 24, dtype=F32)
    function = lambda f: lambda x: f(*fused_heads(x), is_causal=True)  # noqa: E731
    assert_same(all_derivatives(function(attention), [x]), all_derivatives(function(attention_ref), [x]), 1e-5)
    assert attention(*fused_heads(x)).transpose(1, 2).is_contiguous()


def test_any_strides_and_leading_shapes_are_read():
    query, key, value = (randn(3, 2, 1, 4, 9, dtype=F32, seed=i).transpose(-1, -2).transpose(0, 1) for i in range(3))
    mask = randn(9, 2, 3, 9) > -0.5
    mask = mask.permute(2, 1, 0, 3)[:, :, None].movedim(0, 1)
    ours = all_derivatives(partial(attention, attn_mask=mask), [query, key, value])
    assert_same(ours, all_derivatives(partial(attention_ref, attn_mask=mask), [query, key, value]), 1e-5)
    leaf = query.detach().requires_grad_()
    expanded = torch.autograd.grad(attention(leaf, key, value).sum(), leaf)  # a gradient of strides 0
    assert_same(expanded, torch.autograd.grad(attention_ref(leaf, key, value).sum(), leaf), 1e-5)


def test_batched_tangents_of_both_backward_passes():
    results = []
    for function in (attention, attention_ref):
        x = [y.requires_grad_() for y in make_qkv((2,), 2, 2, 5, 5, 4, 4, dtype=F32)]
        grads = torch.autograd.grad(function(*x, is_causal=True).pow(3).sum(), x, create_graph=True)
        many = [randn(2, *y.shape, dtype=F32, seed=i) for i, y in enumerate(x)]
        results.append(torch.autograd.grad(grads, x, many, is_grads_batched=True))
    assert_same(*results, 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # from PyTorch itself
def test_forward_over_reverse():
    x = make_qkv((), 2, 2, 5, 5, 4, 4, dtype=F32)
    t = [randn(*y.shape, dtype=F32, seed=5 + i) for i, y in enumerate(x)]
    results = []
    for function in (attention, attention_ref):
        loss = lambda *x, f=function: f(*x, is_causal=True).pow(3).sum()  # noqa: E731
        results.append(torch.func.jvp(torch.func.grad(loss, (0, 1, 2)), tuple(x), tuple(t))[1])
    assert_same(*results, 1e-5)


@pytest.mark.parametrize("tangents", [(True, False, False), (False, True, True), (False, False, True)])
def test_each_part_of_the_second_backward_alone_equals_the_whole(tangents):
    query, key, value = make_qkv((1,), 2, 1, 9, 17, 16, 16, dtype=F32)
    x = AttentionInputs(query, key, value, None, statistics_like(query), 0.3, False)
    attention_autograd.attention_forward(x)
    grad_out = randn(1, 2, 9, 16, dtype=F32, seed=5)
    given = [t.flip(-1) if there else None for t, there in zip((query, key, value), tangents, strict=True)]
    whole = attention_second(x, grad_out, given, (True, True, True, True))
    zeros = attention_second(
        x, grad_out, [torch.zeros_like(t) if g is None else g for t, g in zip((query, key, value), given, strict=True)],
        (True, True, True, True),
    )  # fmt: skip
    assert_same(whole, zeros, 1e-6)
    for place in range(4):
        wanted = tuple(i == place for i in range(4))
        alone = attention_second(x, grad_out if place != 3 else None, given, wanted)
        assert [a is not None for a in alone] == list(wanted)
        assert torch.equal(alone[place], whole[place])


def test_two_runs_give_the_same_bits():
    inputs = make_qkv((), 2, 1, 70, 70, 16, 16, dtype=F32)
    function = partial(attention, is_causal=True, enable_gqa=True)
    first, second = all_derivatives(function, inputs), all_derivatives(function, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_float64_goes_to_the_reference():
    x = make_qkv((), 2, 2, 5, 5, 4, 4)
    assert torch.equal(attention(*x), attention_ref(*x))
