"""Batched reorthogonalisation of ragged streams against their Lanczos bases.

Two-pass classical Gram-Schmidt, with every dot product and norm accumulated in fp64. Two passes are enough:
Giraud, Langou, Rozloznik, van den Eshof, Numerische Mathematik 101 (2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from hvp_engine.kernels.registry import optional_implementation
from hvp_engine.kernels.scaled_rows import in_fp64, parts_of
from hvp_engine.kernels.streams import Projection, stream_table

__all__ = ["reorthogonalize", "reorthogonalize_ref"]

_REF_COLUMNS = 1 << 16  # whole blocks of rows with scales


def reorthogonalize(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> Projection:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Args:
        bases: Per stream an (capacity, n) tensor of fp32, bf16 or fp64 with contiguous rows, or one of int8 with
            those of :mod:`hvp_engine.kernels.scaled_rows`, which the CUDA C++ kernels leave to plain PyTorch; n may
            differ.
        vectors: Per stream a contiguous (n,) tensor of fp32 or fp64 on the same device; updated in place.
        counts: Per stream the number of leading basis rows in use; may be 0.

    Returns:
        Coefficients, norms and loss of orthogonality on the vectors' device. Equal inputs give equal bits, at
        every number of threads.

    Raises:
        ConfigurationError: No stream is given; lengths, shapes, dtypes, strides or devices do not fit; or a basis has
            more rows than the CUDA kernels take.
        BackendError: HVP_ENGINE_BACKEND asks for a backend that cannot run here, or a launch failed.
    """
    table = stream_table(bases, vectors, counts)
    device = vectors[0].device
    kernels = optional_implementation("reorthogonalize", device)
    if kernels is None or not _serves(kernels, bases):
        return _project(bases, vectors, counts)
    norms, lost = torch.empty((2, len(vectors)), dtype=torch.float64, device=device)
    coefficients = torch.zeros((len(vectors), max(counts)), dtype=torch.float64, device=device)
    found = Projection(coefficients, norms, lost)
    kernels.reorthogonalize(table, found)
    return found


def reorthogonalize_ref(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> Projection:
    """Do the same as `reorthogonalize` in plain PyTorch, on any device.

    Args:
        bases: As in `reorthogonalize`.
        vectors: As in `reorthogonalize`.
        counts: As in `reorthogonalize`.

    Returns:
        As `reorthogonalize`.

    Raises:
        ConfigurationError: As in `reorthogonalize`.
    """
    stream_table(bases, vectors, counts)
    return _project(bases, vectors, counts)


def _project(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> Projection:
    device = vectors[0].device
    coefficients = torch.zeros((len(vectors), max(counts)), dtype=torch.float64, device=device)
    norms = torch.zeros(len(vectors), dtype=torch.float64, device=device)
    lost = torch.zeros(len(vectors), dtype=torch.float64, device=device)
    for s, (basis, vector, count) in enumerate(zip(bases, vectors, counts, strict=True)):
        for second_pass in (False, True):
            norms[s] = torch.linalg.vector_norm(vector, dtype=torch.float64)
            if count == 0:
                continue
            dots, largest = _subtract_projection(basis[:count], vector)
            coefficients[s, :count] += dots
            if second_pass:
                lost[s] = torch.where(norms[s] == 0, 0.0, largest / norms[s])
        norms[s] = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return Projection(coefficients, norms, lost)


def _subtract_projection(rows: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the rows' components from the vector; return the fp64 dots and the largest in magnitude.

    The rows are widened to fp64 one chunk of columns at a time, so that the basis is never copied whole.
    """
    numel = vector.shape[0]
    pieces = [slice(first, min(numel, first + _REF_COLUMNS)) for first in range(0, numel, _REF_COLUMNS)]
    dots = torch.zeros(rows.shape[0], dtype=torch.float64, device=vector.device)
    for columns in pieces:
        dots += _widened(rows, numel, columns) @ vector[columns].double()
    for columns in pieces:
        part = vector[columns]
        part.copy_(part.double() - dots @ _widened(rows, numel, columns))
    return dots, dots.abs().amax()


def _widened(rows: Tensor, numel: int, columns: slice) -> Tensor:
    return in_fp64(parts_of(rows, numel, columns), columns)


def _serves(kernels: ModuleType, bases: Sequence[Tensor]) -> bool:
    """Say whether kernels read all of these rows; those with scales not all do."""
    return getattr(kernels, "READS_SCALED_ROWS", False) or all(basis.dtype != torch.int8 for basis in bases)
