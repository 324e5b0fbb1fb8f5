"""How attention's Triton kernels divide their work."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from hvp_engine.kernels.triton.attention_tiling import MATRIX_BYTES, matrix_strip, tiling

F32 = torch.float32


@pytest.mark.parametrize("heads", [(12, 12), (12, 4), (64, 1)], ids=str)
@pytest.mark.parametrize("length", [1, 100, 1024, 16384, 1 << 17])
def test_strips_of_whole_matrices_in_float32_fit_and_cover_all_rows(length, heads):
    strip = matrix_strip(F32, 8, *heads, length, length)
    bytes_ = 16 * strip.entries * strip.key_heads * heads[0] // heads[1] * strip.rows * length
    assert 0 < bytes_ <= MATRIX_BYTES
    assert strip.rows <= length
    more = strip.entries < 8 or strip.key_heads < heads[1] or strip.rows < min(length, 256)
    assert not more or bytes_ > MATRIX_BYTES // 3  # what is left would not take half as much again


def test_narrow_dtypes_take_tiles():
    assert matrix_strip(torch.bfloat16, 8, 12, 12, 1024, 1024) is None


def test_tensor_cores_round_float32_only_where_torch_lets_them(monkeypatch):
    forward = partial(tiling, "attention_forward", F32, 64, masked=False, architecture=90)
    assert forward().precision == "tf32x3"
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    assert forward().precision == "tf32"


def test_large_head_sizes_take_tiles_of_their_own_only_on_hopper():
    wide = {a: tiling("attention_keys", torch.bfloat16, 128, masked=False, architecture=a) for a in (80, 86, 90, 100)}
    assert wide[80] == wide[86] == wide[100] != wide[90]
