"""Batched reorthogonalisation of ragged streams against their Lanczos bases.

Two-pass classical Gram-Schmidt, with every dot product and norm accumulated in fp64. Two passes are enough:
Giraud, Langou, Rozloznik, van den Eshof, Numerische Mathematik 101 (2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.loader import native
from hvp_engine.kernels.registry import backend_for

__all__ = ["Projection", "reorthogonalize", "reorthogonalize_ref", "stream_table"]

# The numbers of hvp::Dtype in csrc/include/hvp/dtype.h.
_BASIS_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_VECTOR_TYPES = {torch.float32: 0, torch.float64: 1}
_REF_COLUMNS = 1 << 16


class Projection(NamedTuple):
    """What reorthogonalisation found, per stream.

    Attributes:
        coefficients: (streams, max(counts)) fp64: basis times vector, summed over both passes, zero padded.
        norms: (streams,) fp64: norm of the vector afterwards.
        lost: (streams,) fp64: the largest second-pass coefficient in magnitude, relative to the vector's norm
            after the first pass: the loss of orthogonality that one pass alone leaves. 0 without rows.
    """

    coefficients: Tensor
    norms: Tensor
    lost: Tensor


def reorthogonalize(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> Projection:
    """Makes each vector orthogonal, in place, to the leading rows of its basis.

    Args:
        bases: Per stream an (capacity, n) tensor of fp32, bf16 or fp64 with contiguous rows; n may differ.
        vectors: Per stream a contiguous (n,) tensor of fp32 or fp64 on the same device; updated in place.
        counts: Per stream the number of leading basis rows in use; may be 0.

    Returns:
        Coefficients, norms and loss of orthogonality on the vectors' device. Equal inputs give equal bits, at
        every number of threads.

    Raises:
        ConfigurationError: No stream is given, or lengths, shapes, dtypes, strides or devices do not fit.
        BackendError: HVP_ENGINE_BACKEND asks for a backend that cannot run here.
    """
    table = stream_table(bases, vectors, counts)
    device = vectors[0].device
    backend = backend_for(device)
    if backend == "triton":
        from hvp_engine.kernels.triton.reorthogonalize import reorthogonalize_triton  # noqa: PLC0415

        return Projection(*reorthogonalize_triton(table, device))
    if backend == "cuda":
        from hvp_engine.kernels.cuda_kernels import reorthogonalize_cuda  # noqa: PLC0415  (it imports this module)

        return reorthogonalize_cuda(bases, vectors, counts)
    if backend != "native":
        return _project(bases, vectors, counts)
    coefficients = torch.zeros((len(vectors), max(counts)), dtype=torch.float64)
    norms = torch.empty(len(vectors), dtype=torch.float64)
    lost = torch.empty(len(vectors), dtype=torch.float64)
    native.reorthogonalize(table, coefficients.numpy(), norms.numpy(), lost.numpy())
    return Projection(coefficients, norms, lost)


def reorthogonalize_ref(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> Projection:
    """Does the same as `reorthogonalize` in plain PyTorch, on any device.

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
    """Subtracts the rows' components from the vector; returns the fp64 dots and the largest in magnitude.

    The rows are widened to fp64 one chunk of columns at a time, so that the basis is never copied whole.
    """
    chunks = list(zip(torch.split(rows, _REF_COLUMNS, dim=1), torch.split(vector, _REF_COLUMNS), strict=True))
    dots = torch.zeros(rows.shape[0], dtype=torch.float64, device=vector.device)
    for chunk, part in chunks:
        dots += chunk.double() @ part.double()
    for chunk, part in chunks:
        part.copy_(part.double() - dots @ chunk.double())
    return dots, dots.abs().amax()


def stream_table(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> NDArray[np.int64]:
    """Checks all streams; returns the (streams, 7) int64 table that the compiled kernels read."""
    if not len(bases) == len(vectors) == len(counts) or len(vectors) == 0:
        raise ConfigurationError(
            f"reorthogonalize got {len(bases)} bases, {len(vectors)} vectors and {len(counts)} counts; "
            "give one of each per stream, and at least one stream"
        )
    device = vectors[0].device
    table = np.empty((len(vectors), 7), dtype=np.int64)
    for s, (basis, vector, count) in enumerate(zip(bases, vectors, counts, strict=True)):
        problem = _problem(basis, vector, count, device)
        if problem is not None:
            raise ConfigurationError(f"reorthogonalize, stream {s}: {problem}")
        table[s] = (
            basis.data_ptr(),
            vector.data_ptr(),
            basis.stride(0),
            vector.shape[0],
            count,
            _BASIS_TYPES[basis.dtype],
            _VECTOR_TYPES[vector.dtype],
        )
    return table


def _problem(basis: Tensor, vector: Tensor, count: int, device: torch.device) -> str | None:
    """Says what is wrong with one stream and how to put it right, or None."""
    problem = None
    if basis.dtype not in _BASIS_TYPES or vector.dtype not in _VECTOR_TYPES:
        problem = f"basis {basis.dtype}, vector {vector.dtype}; use fp32, bf16 or fp64 and fp32 or fp64"
    elif basis.device != device or vector.device != device:
        problem = f"basis on {basis.device}, vector on {vector.device}; put all streams on one device"
    elif vector.ndim != 1 or basis.ndim != 2 or basis.shape[1] != vector.shape[0] or vector.shape[0] == 0:
        problem = f"basis {tuple(basis.shape)}, vector {tuple(vector.shape)}; use (capacity, n) and (n,)"
    elif not 0 <= count <= basis.shape[0]:
        problem = f"count {count} is outside 0..{basis.shape[0]}, the capacity of the basis"
    elif not vector.is_contiguous() or (basis.stride(1) != 1 and basis.shape[1] > 1):
        problem = "the vector and each basis row must be contiguous; call .contiguous() first"
    elif basis.stride(0) < basis.shape[1] and basis.shape[0] > 1:
        problem = f"basis rows overlap (row stride {basis.stride(0)} < {basis.shape[1]}); call .contiguous()"
    return problem
