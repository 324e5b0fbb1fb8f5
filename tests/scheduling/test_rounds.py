"""What whole matrices of blocks take, and the largest one that fits."""

from __future__ import annotations

import pytest

from hvp_engine.krylov.settings import JobSettings
from hvp_engine.scheduling.rounds import largest_matrix, matrix_bytes


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("numel", [1, 2, 31, 1000, 12_345])
def test_the_largest_matrix_that_fits_does_and_the_next_does_not(precision: str, numel: int) -> None:
    settings = JobSettings(steps=1, precision=precision)  # type: ignore[arg-type]
    need = matrix_bytes(numel, settings)
    assert need >= numel**2 * settings.dtype.itemsize
    assert largest_matrix(need, settings) == numel
    assert largest_matrix(need - 1, settings) == numel - 1
    assert largest_matrix(matrix_bytes(numel + 1, settings) - 1, settings) == numel


def test_no_matrix_fits_into_nothing() -> None:
    assert largest_matrix(0, JobSettings(steps=1)) == largest_matrix(-5, JobSettings(steps=1)) == 0
