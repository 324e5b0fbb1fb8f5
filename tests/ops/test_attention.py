"""Fused attention against plain PyTorch: values, derivatives, rounding, memory and errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from attention_cases import (
    MASKS,
    all_derivatives,
    assert_same,
    fused_heads,
    make_qkv,
    masks,
    math_path,
    randn,
    relative_error,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels import loader
from hvp_engine.ops import applies
from hvp_engine.ops.attention import attention, attention_ref

# PyTorch itself loads its forward-mode rules through a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 31, 3, 5), (129, 33, 17, 16), (66, 131, 31, 8)], ids=str)
def test_values_and_derivatives_equal_the_math_path(sizes, mask, key_heads):
    length, keys, width, value_width = sizes
    inputs = make_qkv((2,), 4, key_heads, length, keys, width, value_width)
    options = {**masks(length, keys)[mask], "enable_gqa": key_heads != 4}
    expected = all_derivatives(partial(math_path, **options), inputs)
    assert_same(all_derivatives(partial(attention, **options), inputs), expected)
    assert_same(all_derivatives(partial(attention_ref, **options), inputs), expected)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_numerical_first_and_second_derivatives(mask, key_heads):
    inputs = [x.requires_grad_() for x in make_qkv((2,), 4, key_heads, 3, 4, 2, 3)]
    function = partial(attention, **masks(3, 4)[mask], enable_gqa=key_heads != 4)
    assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "causal", "per batch", "additive"])
@pytest.mark.parametrize("sizes", [(2, 2, 8, 8), (31, 129, 64, 64), (300, 300, 40, 24)], ids=str)
def test_rounding_error_is_at_most_twice_that_of_plain_pytorch(sizes, mask, dtype):
    inputs = make_qkv((2,), 4, 4, *sizes, dtype=dtype)
    options = masks(*sizes[:2])[mask]
    if mask == "additive":
        options["attn_mask"] = options["attn_mask"].to(dtype)
    exact_options = {k: v.double() if k == "attn_mask" and v.dtype == dtype else v for k, v in options.items()}
    exact = all_derivatives(partial(attention_ref, **exact_options), [x.double() for x in inputs])
    ours = all_derivatives(partial(attention, **options), inputs)
    plain = all_derivatives(partial(math_path, **options), inputs)
    noise = torch.finfo(dtype).eps / 8  # a product of few numbers can come out exact by luck
    for value, reference, truth in zip(ours, plain, exact, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, truth) <= 2 * relative_error(reference, truth) + noise


def test_long_rows_keep_float32_accuracy():
    inputs = make_qkv((), 1, 1, 70, 4097, 64, 64, dtype=torch.float32)
    exact = all_derivatives(attention_ref, [x.double() for x in inputs])
    for value, truth in zip(all_derivatives(attention, inputs), exact, strict=True):
        assert relative_error(value, truth) < 1e-6


@pytest.mark.parametrize("additive", [False, True])
def test_rows_that_see_no_key_give_zeros_and_finite_derivatives(additive):
    mask = randn(2, 1, 5, 7) > 0
    mask[0, :, 1], mask[1] = False, False
    given = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf) if additive else mask
    inputs = make_qkv((2,), 3, 3, 5, 7, 4, 4)
    ours = all_derivatives(partial(attention, attn_mask=given), inputs)
    assert torch.equal(ours[0][0, :, 1], torch.zeros(3, 4, dtype=torch.float64))
    assert_same(ours, all_derivatives(partial(math_path, attn_mask=given), inputs))
    assert_same(ours, all_derivatives(partial(attention_ref, attn_mask=given), inputs))


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -1e9])
def test_rows_masked_by_a_large_negative_number_stay_probabilities(low):
    inputs = make_qkv((2,), 3, 3, 5, 7, 4, 4, dtype=torch.float32)
    mask = torch.zeros(5, 7)
    mask[1], mask[3, 2:] = low, low
    ours = all_derivatives(partial(attention, attn_mask=mask), inputs)
    assert_same(ours, all_derivatives(partial(math_path, attn_mask=mask), inputs), 2e-6)
    torch.testing.assert_close(ours[0][:, :, 1], inputs[2].mean(-2))


@pytest.mark.parametrize("causal", [False, True])
def test_strided_heads_are_read_and_results_merge_without_a_copy(causal):
    x = randn(2, 33, 24)
    function = lambda f: lambda x: f(*fused_heads(x), is_causal=causal)  # noqa: E731
    assert_same(all_derivatives(function(attention), [x]), all_derivatives(function(math_path), [x]))
    assert attention(*fused_heads(x)).transpose(1, 2).is_contiguous()


def test_any_strides_and_leading_shapes_are_read():
    query, key, value = (randn(3, 2, 2, 4, 9, seed=i).transpose(-1, -2).transpose(0, 1) for i in range(3))
    mask = (randn(9, 2, 3, 9) > -0.5).permute(2, 1, 0, 3)[:, :, None].movedim(3, -2)
    for options in ({}, {"attn_mask": mask.movedim(0, 1)}, {"is_causal": True}):
        ours = all_derivatives(partial(attention, **options), [query, key, value])
        assert_same(ours, all_derivatives(partial(attention_ref, **options), [query, key, value]))


@pytest.mark.parametrize(
    "shapes",
    [
        ((5, 3), (7, 3), (7, 2)),
        ((4, 5, 3), (4, 7, 3), (4, 7, 2)),
        ((2, 4, 5, 3), (4, 7, 3), (2, 1, 7, 2)),
        ((2, 4, 5, 3), (7, 3), (7, 2)),
        ((1, 1, 1, 1, 1, 1, 2, 2, 5, 3), (2, 7, 3), (2, 1, 7, 2)),
        ((2, 4, 0, 3), (2, 4, 7, 3), (2, 4, 7, 3)),
        ((2, 4, 5, 3), (2, 4, 0, 3), (2, 4, 0, 3)),
        ((0, 4, 5, 3), (0, 4, 7, 3), (0, 4, 7, 3)),
    ],
    ids=str,
)
def test_leading_dimensions_broadcast_and_may_be_missing_or_empty(shapes):
    inputs = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    assert_same(all_derivatives(attention, inputs), all_derivatives(math_path, inputs))


def test_grouped_heads_may_differ_between_key_and_value():
    inputs = [randn(2, 4, 5, 3), randn(2, 2, 6, 3), randn(2, 1, 6, 2)]
    options = {"enable_gqa": True}
    ours = all_derivatives(partial(attention, **options), inputs)
    assert_same(ours, all_derivatives(partial(math_path, **options), inputs))


@pytest.mark.parametrize("heads", [1, 24])
def test_the_same_bits_at_every_thread_count(heads):
    inputs = make_qkv((), heads, heads, 600, 600, 16, 16, dtype=torch.float32)
    function = partial(attention, is_causal=True)
    results = []
    for count in (1, 2, 2, 5):
        torch.set_num_threads(count)
        results.append(all_derivatives(function, inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def derivatives_of_each_dtype():
    function = partial(attention, is_causal=True, enable_gqa=True)
    return [
        value
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for sizes in ((31, 129, 9, 40), (65, 65, 64, 17))
        for value in all_derivatives(function, make_qkv((2,), 4, 2, *sizes, dtype=dtype))
    ]


ISA_SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
import test_attention as t
t.torch.save((t.loader.native.isa(), t.derivatives_of_each_dtype()), sys.argv[1])
"""


def test_every_instruction_set_gives_the_same_results(tmp_path):
    order = ["baseline", "avx2", "avx512"]
    here = Path(__file__).resolve()
    lower = order[: order.index(loader.native.isa())]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ISA_SCRIPT, str(tmp_path / isa), str(here.parent)],
            env={**os.environ, "HVP_ENGINE_ISA": isa},
        )
        for isa in lower
    ]
    expected = derivatives_of_each_dtype()
    tolerances = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}
    for isa, run in zip(lower, runs, strict=True):
        assert run.wait() == 0
        used, results = torch.load(tmp_path / isa)
        assert used == isa
        for value, other in zip(results, expected, strict=True):
            assert relative_error(value, other.double()) < tolerances[value.dtype]


def peak_growth(function):
    """Largest growth of resident memory while the function runs, in bytes (Linux counts it per process)."""

    def read(field):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    function()
    return read("VmHWM") - before


def test_memory_stays_far_below_one_matrix_of_scores():
    length = 6000
    inputs = make_qkv((), 1, 1, length, length, 8, 8, dtype=torch.float32)
    assert peak_growth(lambda: all_derivatives(attention, inputs)) < length * length * 4 / 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_p": 0.1}, "model.eval"),
        ({"attn_mask": torch.ones(5, 5, dtype=torch.bool), "is_causal": True}, "Pass one"),
        ({"attn_mask": torch.ones(5, 5, dtype=torch.int64)}, "Convert the mask"),
        ({"attn_mask": torch.ones(4, 5, dtype=torch.bool)}, "mask must broadcast"),
        ({"key": randn(2, 3, 5, 6)}, "same last dimension"),
        ({"value": randn(2, 3, 6, 4)}, "same length"),
        ({"query": randn(4)}, "Add dimensions"),
        ({"query": randn(3, 3, 5, 4)}, "cannot broadcast"),
        ({"query": randn(2, 4, 5, 4), "enable_gqa": True}, "multiple"),
        ({"key": randn(2, 3, 5, 4, dtype=torch.float32)}, "same one"),
    ],
    ids=str,
)
def test_bad_arguments_are_explained(change, message):
    x = dict(zip(("query", "key", "value"), make_qkv((2,), 3, 3, 5, 5, 4, 4), strict=True))
    for function in (attention, attention_ref):
        with pytest.raises(ConfigurationError, match=message):
            function(**{**x, **change})


def test_the_registry_is_not_asked_for_operands_that_no_kernel_may_touch(monkeypatch):
    asked = []
    monkeypatch.setattr(applies, "can_run", lambda query, mask: asked.append(query) or True)
    x = torch.randn(1, 2, 3, 4)
    with FlopCounterMode(display=False):
        attention(x, x, x)
    assert not asked
    attention(x, x, x)
    assert len(asked) == 1
