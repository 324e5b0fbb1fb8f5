"""What the Lanczos kernels work on: streams with their bases, their scalars on the device, and the checks of both.

A stream is one Lanczos recurrence; n is the length of its vectors and may differ between streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.scaled_rows import row_length
from hvp_engine.kernels.tensors import dtype_number

__all__ = [
    "TWICE",
    "LanczosState",
    "NewVector",
    "Projection",
    "Rule",
    "Step",
    "check_step",
    "stream_table",
]

_STORE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # that a step can write
_BASIS_DTYPES = (*_STORE_DTYPES, torch.int8)
_VECTOR_DTYPES = (torch.float32, torch.float64)


class Rule(NamedTuple):
    """How often reorthogonalisation reads a basis: components that are too small to matter are left where they are.

    Attributes:
        near: How many of the last rows the first pass takes out, by dots with these alone; None for all.
        tolerance: What may stay in a vector: the Euclidean norm of its cosines with the basis.
        postponed: What may stay in a vector until it is itself the last row of the basis, and is corrected there to the
            tolerance; None where nothing more than the tolerance may. Such bases have the dtype of their vectors.
    """

    near: int | None = None
    tolerance: float = 0.0
    postponed: float | None = None

    def first_rows(self, count: int) -> int:
        """Return how many of a stream's rows the first pass takes out."""
        return count if self.near is None else min(self.near, count)

    @property
    def numbers(self) -> tuple[int, float, float]:
        """What compiled kernels are given: negative numbers stand for None."""
        return (
            -1 if self.near is None else self.near,
            self.tolerance,
            -1.0 if self.postponed is None else self.postponed,
        )


TWICE = Rule()  # both passes, always, with all rows
LARGE_SHARE = 0.1  # a second pass that removes more than this share of a vector is followed by a third


class Projection(NamedTuple):
    """What reorthogonalisation found, per stream.

    Attributes:
        coefficients: (streams, max(counts)) fp64: basis times vector, summed over what was taken out, zero padded.
        norms: (streams,) fp64: norm of the vector afterwards.
        lost: (streams,) fp64: the loss of orthogonality, as a cosine. Where the first pass has all rows: the largest
            that it left. Else the largest that stays: what was measured or, where that was taken out, times the rule's
            tolerance; where corrections are postponed that of the last row, else that of the vector. 0 without rows.
    """

    coefficients: Tensor
    norms: Tensor
    lost: Tensor


class LanczosState(NamedTuple):
    """The scalars of all streams, on the device of their vectors.

    Attributes:
        alphas: (streams, steps) fp64.
        betas: (streams, steps) fp64; ``betas[s, j]`` couples vectors j and j + 1, and that of a stream's last step is
            the norm of what was left. 0 where the Krylov space was exhausted.
        steps: (streams,) int64: steps done.
        live: (streams,) bool.
        lost: (streams,) fp64: the largest loss of orthogonality so far.
        norms: (streams,) fp64: running estimate of ||T||.
        last: (streams,) int64: the step after which a stream ends in any case.
    """

    alphas: Tensor
    betas: Tensor
    steps: Tensor
    live: Tensor
    lost: Tensor
    norms: Tensor
    last: Tensor


class Step(NamedTuple):
    """What a step found for some of the streams, k of them.

    Attributes:
        members: The streams' rows in the state, each at most once.
        position: Number of the step.
        alphas: (k,) fp64, of any stride.
        betas: (k,) fp64, contiguous.
        lost: (k,) fp64, contiguous.
        tolerance: Of the breakdown test.
    """

    members: Sequence[int]
    position: int
    alphas: Tensor
    betas: Tensor
    lost: Tensor
    tolerance: float


class NewVector(NamedTuple):
    """A stream's orthogonalised product and where its next Lanczos vector goes.

    Attributes:
        place: The stream's place in the step, 0..k-1.
        vector: (n,) contiguous fp32 or fp64; its contents are undefined afterwards.
        store: (n,) contiguous fp32, bf16 or fp64, or None.
        window: (n,) contiguous, of the vector's dtype, or None.
    """

    place: int
    vector: Tensor
    store: Tensor | None
    window: Tensor | None


def stream_table(bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> NDArray[np.int64]:
    """Check all streams and describe them to compiled kernels.

    Args:
        bases: Per stream an (capacity, n) tensor of fp32, bf16 or fp64 with contiguous rows, or one of int8 with
            those of :mod:`hvp_engine.kernels.scaled_rows`, (capacity, row_bytes(n)).
        vectors: Per stream a contiguous (n,) tensor of fp32 or fp64 on the same device.
        counts: Per stream the number of leading basis rows in use; may be 0.

    Returns:
        (streams, 7) int64: addresses of basis and vector, row stride of the basis, n, count, and the numbers of the
        basis's and the vector's dtype.

    Raises:
        ConfigurationError: No stream is given, or lengths, shapes, dtypes, strides or devices do not fit.
    """
    if not len(bases) == len(vectors) == len(counts) or len(vectors) == 0:
        raise ConfigurationError(
            f"reorthogonalize got {len(bases)} bases, {len(vectors)} vectors and {len(counts)} counts; "
            "give one of each per stream, and at least one stream."
        )
    device = vectors[0].device
    table = np.empty((len(vectors), 7), dtype=np.int64)
    for s, (basis, vector, count) in enumerate(zip(bases, vectors, counts, strict=True)):
        problem = _problem(basis, vector, count, device)
        if problem is not None:
            raise ConfigurationError(f"Stream {s} cannot be reorthogonalised: {problem}.")
        table[s] = (
            basis.data_ptr(),
            vector.data_ptr(),
            basis.stride(0),
            vector.shape[0],
            count,
            dtype_number(basis.dtype),
            dtype_number(vector.dtype),
        )
    return table


def check_rule(rule: Rule, bases: Sequence[Tensor], vectors: Sequence[Tensor]) -> None:
    """Refuse a rule that makes no sense, or does not fit the streams.

    Raises:
        ConfigurationError: A number is out of range, or last rows would be corrected in another dtype.
    """
    if (rule.near is not None and rule.near < 0) or rule.tolerance < 0.0 or (rule.postponed or 0.0) < 0.0:
        raise ConfigurationError(f"{rule} has a negative number; all of its numbers are at least 0.")
    if rule.postponed is not None and any(b.dtype != v.dtype for b, v in zip(bases, vectors, strict=True)):
        raise ConfigurationError(
            "Corrections cannot be postponed for bases of another dtype than their vectors; use postponed=None."
        )


def _problem(basis: Tensor, vector: Tensor, count: int, device: torch.device) -> str | None:
    """Say what is wrong with one stream and how to put it right, or None."""
    problem = None
    if basis.dtype not in _BASIS_DTYPES or vector.dtype not in _VECTOR_DTYPES:
        problem = f"basis {basis.dtype}, vector {vector.dtype}; use fp32, bf16, fp64 or int8 and fp32 or fp64"
    elif basis.device != device or vector.device != device:
        problem = f"basis on {basis.device}, vector on {vector.device}; put all streams on one device"
    elif vector.ndim != 1 or basis.ndim != 2 or vector.shape[0] == 0:
        problem = f"basis {tuple(basis.shape)}, vector {tuple(vector.shape)}; use (capacity, n) and (n,)"
    elif basis.shape[1] != (row := row_length(basis.dtype, vector.shape[0])):
        wanted = "n" if basis.dtype != torch.int8 else f"{row} for its n"
        problem = f"basis {tuple(basis.shape)}, vector {tuple(vector.shape)}; use (capacity, {wanted}) and (n,)"
    elif basis.dtype == torch.int8 and (basis.data_ptr() % 4 or (basis.stride(0) % 4 and basis.shape[0] > 1)):
        problem = "rows of 8 bits must begin at multiples of 4 bytes, for their scales"
    elif not 0 <= count <= basis.shape[0]:
        problem = f"count {count} is outside 0..{basis.shape[0]}, the capacity of the basis"
    elif not vector.is_contiguous() or (basis.stride(1) != 1 and basis.shape[1] > 1):
        problem = "the vector and each basis row must be contiguous; call .contiguous() first"
    elif basis.stride(0) < basis.shape[1] and basis.shape[0] > 1:
        problem = f"basis rows overlap (row stride {basis.stride(0)} < {basis.shape[1]}); call .contiguous()"
    return problem


def check_step(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Refuse a step that does not fit its state.

    Raises:
        ConfigurationError: The step has no members, or lengths, shapes, dtypes, strides or devices do not fit.
    """
    (num, columns), device, k = state.alphas.shape, state.alphas.device, len(step.members)
    shapes = ((num, columns), (num, columns), (num,), (num,), (num,), (num,), (num,))
    dtypes = (torch.float64, torch.float64, torch.int64, torch.bool, torch.float64, torch.float64, torch.int64)
    for name, tensor, shape, dtype in zip(state._fields, state, shapes, dtypes, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
            raise ConfigurationError(f"state.{name} must be contiguous {dtype} {shape} on {device}.")
    if k == 0:
        raise ConfigurationError("The step has no members; give the row of at least one stream in the state.")
    if not 0 <= step.position < columns or min(step.members) < 0 or max(step.members) >= num:
        raise ConfigurationError(
            f"position={step.position} or the members {step.members} do not fit a state of shape ({num}, {columns})."
        )
    for name, tensor in (("alphas", step.alphas), ("betas", step.betas), ("lost", step.lost)):
        if tensor.dtype != torch.float64 or tensor.shape != (k,) or tensor.device != device:
            raise ConfigurationError(
                f"step.{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; "
                f"use float64 ({k},) on {device}."
            )
        if name != "alphas" and not tensor.is_contiguous():
            raise ConfigurationError(f"step.{name} is not contiguous; call .contiguous() first.")
    for new in vectors:
        problem = _rows_problem(new, device)
        if problem is not None:
            raise ConfigurationError(f"The next vector at place {new.place} cannot be recorded: {problem}.")


def _rows_problem(new: NewVector, device: torch.device) -> str | None:
    """Say what is wrong with a vector and the rows that it goes to, or None."""
    _, vector, store, window = new
    for tensor in (vector, store, window):
        if tensor is not None and (
            tensor.ndim != 1 or tensor.shape != vector.shape or tensor.device != device or not tensor.is_contiguous()
        ):
            return f"vector and rows must be contiguous (n,) tensors on {device}"
    if vector.dtype not in _VECTOR_DTYPES or (store is not None and store.dtype not in _STORE_DTYPES):
        return "use an fp32 or fp64 vector and an fp32, bf16 or fp64 basis"
    if window is not None and window.dtype != vector.dtype:
        return f"the window is {window.dtype}, the vector {vector.dtype}; use one dtype"
    return None
