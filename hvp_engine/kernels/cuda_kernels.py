"""Calls of the CUDA kernels: everything stays on the device, nothing waits for it.

Work is queued on torch's current stream of the tensors' device, whose caching allocator keeps workspaces alive until
the kernels that use them have run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import BackendError, ConfigurationError
from hvp_engine.kernels import loader
from hvp_engine.kernels.lanczos_step import LanczosState, NewVector, Step
from hvp_engine.kernels.reorthogonalize import Projection, stream_table

__all__ = [
    "record_step_cuda",
    "reorthogonalize_cuda",
    "tridiagonal_quadrature_cuda",
]

# The numbers of hvp::Dtype in csrc/include/hvp/dtype.h.
_BASIS_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_VECTOR_TYPES = {torch.float32: 0, torch.float64: 1}


def reorthogonalize_cuda(
    bases: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int] | Tensor
) -> Projection:
    """Does what `hvp_engine.kernels.reorthogonalize` does, for tensors on one CUDA device.

    Args:
        bases: Per stream an (capacity, n) tensor of fp32, bf16 or fp64 with contiguous rows; n may differ.
        vectors: Per stream a contiguous (n,) tensor of fp32 or fp64; updated in place.
        counts: Per stream the number of leading basis rows in use, or an int64 tensor (streams,) of them on the device,
            which is then never read by the host; a count above the capacity means the capacity.

    Returns:
        Coefficients (streams, largest count; for a tensor of counts the largest capacity), norms and losses on the
        device. Equal inputs give equal bits.

    Raises:
        ConfigurationError: Lengths, shapes, dtypes, strides or devices do not fit, or a basis has too many rows.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    on_device = isinstance(counts, Tensor)
    limits = [basis.shape[0] for basis in bases] if on_device else list(counts)
    table = stream_table(bases, vectors, limits)
    device = vectors[0].device
    if max(limits) > loader.native.cuda_max_rows:
        raise ConfigurationError(
            f"a basis of {max(limits)} rows is more than the CUDA kernels take ({loader.native.cuda_max_rows}); "
            "use fewer steps, or set HVP_ENGINE_BACKEND=torch"
        )
    with _queue(device) as stream:
        used = (
            _device_counts(counts, len(vectors), device)
            if on_device
            else _to_device(np.array(limits, np.int64), device)
        )
        plan, words = loader.native.cuda_plan_reorthogonalize(table)
        entries = _to_device(words, device)
        coefficients = torch.empty((len(vectors), max(limits)), dtype=torch.float64, device=device)
        norms, lost = torch.empty((2, len(vectors)), dtype=torch.float64, device=device)
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
        loader.native.cuda_reorthogonalize(
            plan,
            entries.data_ptr(),
            used.data_ptr(),
            coefficients.data_ptr(),
            coefficients.shape[1],
            norms.data_ptr(),
            lost.data_ptr(),
            workspace.data_ptr(),
            _index(device),
            stream,
        )
    return Projection(coefficients, norms, lost)


def record_step_cuda(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Does what `hvp_engine.kernels.lanczos_step.record_step` does, for tensors on one CUDA device.

    Args:
        state: As there; contiguous.
        step: As there.
        vectors: As there.

    Raises:
        ConfigurationError: Lengths, shapes, dtypes or devices do not fit.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    device, position = state.alphas.device, step.position
    _check_state(state, step)
    # A stream that gets no further vector has taken its last step; the others have at least one left.
    table = np.array([(0, 0, 0, 0, row, position + 1, 0, 0) for row in step.members], dtype=np.int64)
    for place, vector, store, window in vectors:
        _check_rows(place, vector, store, window, device)
        addresses = [0 if t is None else t.data_ptr() for t in (vector, store, window)]
        store_type = 0 if store is None else _BASIS_TYPES[store.dtype]
        row, last = table[place, 4], position + 2
        table[place] = (*addresses, vector.shape[0], row, last, store_type, _VECTOR_TYPES[vector.dtype])
    with _queue(device) as stream:
        tasks, words = loader.native.cuda_plan_record(table)
        entries = _to_device(words, device)
        loader.native.cuda_record_step(
            entries.data_ptr(),
            len(step.members),
            tasks,
            step.alphas.data_ptr(),
            step.alphas.stride(0),
            step.betas.data_ptr(),
            step.lost.data_ptr(),
            position,
            step.tolerance,
            [t.data_ptr() for t in (state.alphas, state.betas, state.norms, state.lost, state.steps, state.live)],
            state.alphas.shape[1],
            _index(device),
            stream,
        )


def tridiagonal_quadrature_cuda(alphas: Tensor, betas: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes eigenvalues and squared first eigenvector components of tridiagonal matrices on the device.

    Args:
        alphas: (matrices, m) float64 diagonals.
        betas: (matrices, m - 1) float64 off-diagonals.
        steps: (matrices,) int64; matrix s consists of its leading steps[s] entries (at least 1, at most m).

    Returns:
        Nodes (matrices, m), ascending, weights (matrices, m) and an int64 scalar: the first matrix whose iteration did
        not converge (a NaN does not), or -1. Entries past steps[s] repeat the largest node with weight 0.

    Raises:
        ConfigurationError: Shapes, dtypes or devices do not fit.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    if alphas.ndim != 2 or alphas.shape[0] < 1 or alphas.shape[1] < 1:
        raise ConfigurationError(f"alphas has shape {tuple(alphas.shape)}; give (matrices, m) with m >= 1")
    num, m = alphas.shape
    if betas.shape != (num, m - 1) or steps.shape != (num,) or steps.dtype != torch.int64:
        raise ConfigurationError(
            f"betas {tuple(betas.shape)} and steps {tuple(steps.shape)} {steps.dtype} do not fit alphas ({num}, {m}); "
            f"give ({num}, {m - 1}) and ({num},) torch.int64"
        )
    device = alphas.device
    if alphas.dtype != torch.float64 or betas.dtype != torch.float64 or {betas.device, steps.device} != {device}:
        raise ConfigurationError("alphas and betas must be float64, and all arguments on one device")
    with _queue(device) as stream:
        alphas, betas, steps = alphas.contiguous(), betas.contiguous(), steps.contiguous()
        nodes, weights = torch.empty_like(alphas), torch.empty_like(alphas)
        failed = torch.empty((), dtype=torch.int64, device=device)
        size = loader.native.cuda_tridiagonal_workspace_bytes(num, m)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        arrays = [t.data_ptr() for t in (alphas, betas, steps, nodes, weights, failed, workspace)]
        loader.native.cuda_tridiagonal_quadrature(num, m, arrays, _index(device), stream)
    return nodes, weights, failed


@contextmanager
def _queue(device: torch.device) -> Iterator[int]:
    """Makes a CUDA device current and gives its current stream; turns launch errors into BackendError."""
    if device.type != "cuda":
        raise ConfigurationError(f"the CUDA kernels take tensors on a CUDA device, not on {device}")
    reason = loader.cuda_missing_reason()
    if reason is not None:
        raise BackendError(f"the CUDA kernels cannot run: {reason}; set HVP_ENGINE_BACKEND=torch to do without them")
    with torch.cuda.device(device):
        try:
            yield torch.cuda.current_stream(device).cuda_stream
        except torch.OutOfMemoryError:  # a RuntimeError too; the scheduler answers it with smaller batches
            raise
        except RuntimeError as error:
            raise BackendError(f"a CUDA kernel could not be launched on {device}: {error}") from error


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copies a small table without waiting: from pinned memory, which torch keeps until the copy is done."""
    return torch.from_numpy(array).pin_memory().to(device, non_blocking=True)


def _device_counts(counts: Sequence[int] | Tensor, streams: int, device: torch.device) -> Tensor:
    assert isinstance(counts, Tensor)
    if counts.dtype != torch.int64 or counts.shape != (streams,) or counts.device != device:
        raise ConfigurationError(
            f"counts is {counts.dtype} {tuple(counts.shape)} on {counts.device}; use int64 ({streams},) on {device}"
        )
    return counts.contiguous()


def _check_state(state: LanczosState, step: Step) -> None:
    (num, columns), device = state.alphas.shape, state.alphas.device
    shapes = ((num, columns), (num, columns), (num,), (num,), (num,), (num,), (num,))
    dtypes = (torch.float64, torch.float64, torch.int64, torch.bool, torch.float64, torch.float64, torch.int64)
    for name, tensor, shape, dtype in zip(state._fields, state, shapes, dtypes, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
            raise ConfigurationError(f"state.{name} must be contiguous {dtype} {shape} on {device}")
    if not 0 <= step.position < columns or min(step.members) < 0 or max(step.members) >= num:
        raise ConfigurationError(
            f"position {step.position} or the members {step.members} do not fit a state of shape ({num}, {columns})"
        )
    for name, tensor in (("alphas", step.alphas), ("betas", step.betas), ("lost", step.lost)):
        if tensor.dtype != torch.float64 or tensor.shape != (len(step.members),) or tensor.device != device:
            raise ConfigurationError(
                f"step.{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; use float64 "
                f"({len(step.members)},) on {device}"
            )
        if name != "alphas" and not tensor.is_contiguous():
            raise ConfigurationError(f"step.{name} must be contiguous")


def _check_rows(s: int, vector: Tensor, store: Tensor | None, window: Tensor | None, device: torch.device) -> None:
    for tensor in (vector, store, window):
        if tensor is not None and (
            tensor.ndim != 1 or tensor.shape != vector.shape or tensor.device != device or not tensor.is_contiguous()
        ):
            raise ConfigurationError(f"stream {s}: vector and rows must be contiguous (n,) tensors on {device}")
    if vector.dtype not in _VECTOR_TYPES or (store is not None and store.dtype not in _BASIS_TYPES):
        raise ConfigurationError(f"stream {s}: use an fp32 or fp64 vector and an fp32, bf16 or fp64 basis")
    if window is not None and window.dtype != vector.dtype:
        raise ConfigurationError(f"stream {s}: the window is {window.dtype}, the vector {vector.dtype}; use one dtype")
