"""Batched reorthogonalisation of ragged streams against their Lanczos bases.

Classical Gram-Schmidt, with every dot product and norm accumulated in fp64. Two passes are enough: Giraud, Langou,
Rozloznik, van den Eshof, Numerische Mathematik 101 (2005). By a :class:`Rule` they cost less than reading the basis
three times: in a Lanczos step only the components along the last two vectors are large, and the first pass takes out
these alone. The next read of the basis measures what that left along all vectors, and it is taken out, in another read,
only where it is too large to stay. Where corrections may be postponed the same two reads serve two vectors: the dots of
the newest basis vector and of its product share the first, the corrections of both the second (the delay of Bielich et
al., Parallel Computing 112 (2022)), so that a vector may be multiplied before it is as orthogonal as it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from hvp_engine.kernels.registry import optional_implementation
from hvp_engine.kernels.scaled_rows import in_fp64, parts_of
from hvp_engine.kernels.streams import LARGE_SHARE, TWICE, Projection, Rule, check_rule, stream_table

__all__ = ["reorthogonalize", "reorthogonalize_ref"]

_REF_COLUMNS = 1 << 16  # whole blocks of rows with scales


def reorthogonalize(
    bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int], rule: Rule = TWICE
) -> Projection:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Args:
        bases: Per stream an (capacity, n) tensor of fp32, bf16 or fp64 with contiguous rows, or one of int8 with
            those of :mod:`hvp_engine.kernels.scaled_rows`, which the CUDA C++ kernels leave to plain PyTorch; n may
            differ. Where the rule postpones corrections the last row in use, a unit vector, is corrected by the rows
            before it.
        vectors: Per stream a contiguous (n,) tensor of fp32 or fp64 on the same device; updated in place.
        counts: Per stream the number of leading basis rows in use; may be 0.
        rule: How often to read the bases.

    Returns:
        Coefficients, norms and loss of orthogonality on the vectors' device. Equal inputs give equal bits, at
        every number of threads.

    Raises:
        ConfigurationError: No stream is given; lengths, shapes, dtypes, strides or devices do not fit; or a basis has
            more rows than the CUDA kernels take.
        BackendError: HVP_ENGINE_BACKEND asks for a backend that cannot run here, or a launch failed.
    """
    table = stream_table(bases, vectors, counts)
    check_rule(rule, bases, vectors)
    device = vectors[0].device
    kernels = optional_implementation("reorthogonalize", device)
    if kernels is None or not _serves(kernels, bases):
        return _project(bases, vectors, counts, rule)
    norms, lost = torch.empty((2, len(vectors)), dtype=torch.float64, device=device)
    coefficients = torch.zeros((len(vectors), max(counts)), dtype=torch.float64, device=device)
    found = Projection(coefficients, norms, lost)
    kernels.reorthogonalize(table, rule, found)
    return found


def reorthogonalize_ref(
    bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int], rule: Rule = TWICE
) -> Projection:
    """Do the same as `reorthogonalize` in plain PyTorch, on any device.

    Args:
        bases: As in `reorthogonalize`.
        vectors: As in `reorthogonalize`.
        counts: As in `reorthogonalize`.
        rule: As in `reorthogonalize`.

    Returns:
        As `reorthogonalize`.

    Raises:
        ConfigurationError: As in `reorthogonalize`.
    """
    stream_table(bases, vectors, counts)
    check_rule(rule, bases, vectors)
    return _project(bases, vectors, counts, rule)


def _project(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int], rule: Rule) -> Projection:
    device = vectors[0].device
    coefficients = torch.zeros((len(vectors), max(counts)), dtype=torch.float64, device=device)
    norms, lost = torch.zeros((2, len(vectors)), dtype=torch.float64, device=device)
    for s, (basis, vector, count) in enumerate(zip(bases, vectors, counts, strict=True)):
        norms[s], lost[s] = _project_one(basis[:count], vector, coefficients[s, :count], rule)
    return Projection(coefficients, norms, lost)


def _project_one(rows: Tensor, vector: Tensor, total: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Orthogonalise one vector; add what was taken out to ``total``, return the norm and the loss."""
    count, near = len(rows), rule.first_rows(len(rows))
    first = torch.zeros_like(total)
    first[count - near :] = _dots(rows[count - near :], vector)
    _subtract(rows[count - near :], first[count - near :], vector)
    total += first
    norm, left = _norm(vector), _dots(rows, vector)
    share = _relative(left.norm(), norm)
    if rule.postponed is None:
        enough, lost = share <= rule.tolerance, _relative(_largest(left), norm)
    else:
        of_last = _dots(rows[:-1], rows[-1]) if count else left
        enough = (share <= rule.postponed) & (of_last.norm() <= rule.tolerance)
        lost = _largest(of_last)
        left[-1:] -= of_last @ left[:-1] if count else 0.0  # the vector was measured without the last row's correction
    if enough:
        return norm, lost
    total += left
    _subtract(rows, left, vector)
    if rule.postponed is not None and count:
        _subtract(rows[:-1], of_last, rows[-1])
    if near < count:
        lost = lost * rule.tolerance  # what a basis that is orthogonal to the tolerance leaves of it
        if not share <= LARGE_SHARE:
            norm, left = _norm(vector), _dots(rows, vector)
            lost = _relative(_largest(left), norm)
            total += left
            _subtract(rows, left, vector)
    return _norm(vector), lost


def _serves(kernels: ModuleType, bases: Sequence[Tensor]) -> bool:
    """Say whether kernels read all of these rows; those with scales not all do."""
    return getattr(kernels, "READS_SCALED_ROWS", False) or all(basis.dtype != torch.int8 for basis in bases)


def _norm(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return norm


def _relative(size: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm == 0, 0.0, size / norm)


def _largest(dots: Tensor) -> Tensor:
    return dots.abs().amax() if len(dots) else dots.sum()


def _dots(rows: Tensor, vector: Tensor) -> Tensor:
    """Return the rows' products with the vector; rows are widened to fp64 one chunk of columns at a time."""
    dots = torch.zeros(rows.shape[0], dtype=torch.float64, device=vector.device)
    for columns, wide in _widened(rows, vector.shape[0]):
        dots += wide @ vector[columns].double()
    return dots


def _subtract(rows: Tensor, coefficients: Tensor, vector: Tensor) -> None:
    """Subtract the rows times their coefficients from the vector, likewise."""
    for columns, wide in _widened(rows, vector.shape[0]):
        part = vector[columns]
        part.copy_(part.double() - coefficients @ wide)


def _widened(rows: Tensor, numel: int) -> Iterator[tuple[slice, Tensor]]:
    for first in range(0, numel, _REF_COLUMNS):
        columns = slice(first, min(numel, first + _REF_COLUMNS))
        yield columns, in_fp64(parts_of(rows, numel, columns), columns)
