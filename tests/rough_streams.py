"""Streams whose last row and vector are more or less orthogonal to the rows before, and rules to project them by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.streams import Rule

NEAR = Rule(2, 1e-6)  # corrected at once
DELAYED = Rule(2, 1e-6, 1e-4)  # corrected as the last row of the basis
RULES = {"near": NEAR, "near none": Rule(0, 1e-6), "delayed": DELAYED, "delayed, near all": Rule(None, 0.0, 1e-3)}

# Components along the rows before, of the last row and of the vector: none of them, the one, the other, both; and so
# much of the vector that it takes three passes.
MESSES = ((0.0, 0.0), (1e-9, 1e-5), (1e-3, 0.0), (0.0, 1e-2), (1e-4, 3.0))


def rough_streams(
    sizes: Sequence[tuple[int, int]], basis_dtype: torch.dtype, vector_dtype: torch.dtype, extra_columns: int = 0
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Make a stream of each size (n, count) with each mess; the row after those in use is NaN, and so are gaps."""
    generator = torch.Generator().manual_seed(len(sizes))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bases, vectors, counts = [], [], []
    for n, count in sizes:
        for of_last, of_vector in MESSES:
            rows = torch.linalg.qr(draw(n, count))[0].T.contiguous()
            vector = draw(n)
            vector -= rows.T @ (rows @ vector)
            vector /= vector.norm()
            if count > 2:
                rows[-1] += of_last * draw(count - 1) @ rows[:-1]
                vector += of_vector * draw(count - 2) @ rows[:-2]
            for row, size in zip(rows[-2:], (3.0, 2.0), strict=False):
                vector += size * row
            storage = torch.full((count + 1, n + extra_columns), float("nan"), dtype=basis_dtype)
            storage[:count, :n] = rows
            bases.append(storage[:, :n])
            vectors.append(vector.to(vector_dtype))
            counts.append(count)
    return bases, vectors, counts
