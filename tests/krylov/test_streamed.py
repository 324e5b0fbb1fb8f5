"""Rows that are brought piece by piece give what a kernel finds that reads them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvp_engine.kernels.reorthogonalize import reorthogonalize_ref
from hvp_engine.kernels.scaled_rows import row_bytes, scaled_rows
from hvp_engine.krylov import streamed

NUMEL, COUNT = 3001, 5


def rows_in(dtype: torch.dtype, count: int = COUNT, numel: int = NUMEL) -> Tensor:
    torch.manual_seed(1)
    rows = torch.linalg.qr(torch.randn(numel, count))[0].T.contiguous()
    if dtype != torch.int8:
        return torch.cat([rows, torch.full((2, numel), float("nan"))]).to(dtype)
    kept = torch.empty(count, row_bytes(numel), dtype=torch.int8)
    for row, target in zip(rows, kept, strict=True):
        scaled_rows(row, target)
    return kept


@pytest.mark.parametrize("piece", [1, 128 * COUNT * 4, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_the_result_is_that_of_the_reference(dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_PIECE_BYTES", piece)
    bases = [rows_in(dtype), rows_in(dtype), rows_in(dtype, 1, 4)]
    vectors, counts = [torch.randn(NUMEL), torch.randn(NUMEL).double(), torch.randn(4)], [COUNT, 0, 1]
    wanted = [vector.clone() for vector in vectors]
    expected = reorthogonalize_ref(bases, wanted, counts)
    found = streamed.reorthogonalize_streamed(bases, vectors, counts)
    for name in ("coefficients", "norms"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.lost, expected.lost, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(vectors, wanted, rtol=1e-5, atol=1e-6)


def test_without_rows_only_the_norm_is_taken() -> None:
    vector = torch.zeros(7)
    found = streamed.reorthogonalize_streamed([torch.empty(2, 7)], [vector], [0])
    assert found.coefficients.shape == (1, 0) and not found.norms.any() and not found.lost.any()
