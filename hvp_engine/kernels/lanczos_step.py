"""Records one Lanczos step of many streams where their vectors live, so that the host need not wait for it.

The rule, per stream that is live: alpha and beta are kept, the running norm of T becomes at least |alpha| + beta + the
beta before, and the stream ends when beta is at most ``tolerance`` times that norm (its Krylov space is exhausted) or
when it has taken its last step. Otherwise vector / beta becomes its next Lanczos vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hvp_engine.kernels.registry import backend_for

__all__ = ["LanczosState", "NewVector", "Step", "record_step", "record_step_ref"]


class LanczosState(NamedTuple):
    """The scalars of all streams, on the device of their vectors.

    Attributes:
        alphas: (streams, steps) fp64.
        betas: (streams, steps) fp64; ``betas[s, j]`` couples vectors j and j + 1.
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


def record_step(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Records a step in the state and writes the next Lanczos vectors; on a GPU nothing waits for it.

    A stream that is not live any more keeps its scalars. One that has ended gets zeros for its next vector. One whose
    alpha or beta is not finite ends, and shows it in alphas or betas.

    Args:
        state: Updated in place.
        step: What the step found.
        vectors: For each stream that has room for another vector; all of the same dtypes.

    Raises:
        BackendError: HVP_ENGINE_BACKEND asks for a backend that cannot run here.
    """
    backend = backend_for(state.alphas.device)
    if backend == "triton":
        from hvp_engine.kernels.triton.lanczos_step import record_step_triton  # noqa: PLC0415

        record_step_triton(state, step, vectors)
    elif backend == "cuda":
        from hvp_engine.kernels.cuda_kernels import record_step_cuda  # noqa: PLC0415

        record_step_cuda(state, step, vectors)
    else:
        record_step_ref(state, step, vectors)


def record_step_ref(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Does the same as `record_step` in plain PyTorch, on any device.

    Args:
        state: As in `record_step`.
        step: As in `record_step`.
        vectors: As in `record_step`.
    """
    j, beta = step.position, step.betas
    s = torch.tensor(step.members, dtype=torch.int64).to(beta.device, non_blocking=True)
    live, norms, lost = state.live[s], state.norms[s], state.lost[s]
    size = step.alphas.abs() + beta
    if j > 0:
        size += state.betas[s, j - 1]
    norms = torch.where(live & (size > norms), size, norms)
    finite = step.alphas.isfinite() & beta.isfinite()
    ended = finite & ((beta <= step.tolerance * norms) | (j + 1 >= state.last[s]))
    state.norms[s] = norms
    state.alphas[s, j] = torch.where(live, step.alphas, state.alphas[s, j])
    state.betas[s, j] = torch.where(live & ~ended, beta, state.betas[s, j])
    state.steps[s] = torch.where(live, j + 1, state.steps[s])
    state.lost[s] = torch.where(live & ~(step.lost <= lost), step.lost, lost)
    live &= finite & ~ended
    state.live[s] = live
    divisors = torch.where(live, beta, torch.inf)  # a finite number over infinity is the zero that ended streams get
    for new in vectors:
        new.vector.div_(divisors[new.place])
        for target in (new.store, new.window):
            if target is not None:
                target.copy_(new.vector)
