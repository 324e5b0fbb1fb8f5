"""How attention's Triton kernels divide their work."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from hvp_engine.kernels.triton.attention_tiling import MATRIX_BYTES, matrix_strip, tiling

F32 = torch.float32


def test_float32_takes_whole_matrices_in_strips_that_fit():
    assert matrix_strip(torch.bfloat16, 8, 12, 1024, 1024) is None
    few, many = matrix_strip(F32, 8, 12, 1024, 1024), matrix_strip(F32, 8, 12, 1024, 16384)
    for strip, keys in ((few, 1024), (many, 16384)):
        assert 0 < 16 * strip.entries * 12 * strip.rows * keys <= MATRIX_BYTES
    assert many.rows < few.rows
    assert matrix_strip(F32, 1, 64, 1 << 20, 1 << 20) is None


def test_tensor_cores_multiply_float32_only_where_torch_lets_them(monkeypatch):
    assert tiling("attention_queries", F32, 64, masked=False).precision == "ieee"
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    assert tiling("attention_queries", F32, 64, masked=False).precision == "tf32"
