"""One Lanczos step of many streams, recorded where their vectors live, so that the host need not wait for it.

The rule, per stream that is live: alpha and beta are kept, the running norm of T becomes at least |alpha| + beta + the
beta before, and the stream ends when beta is at most ``tolerance`` times that norm (its Krylov space is exhausted) or
when it has taken its last step. Otherwise vector / beta becomes its next Lanczos vector. The beta of an exhausted space
is rounding, and stays the 0 that it was; that of a last step is kept: it says how far the stream was from its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvp_engine.kernels.registry import optional_implementation
from hvp_engine.kernels.streams import LanczosState, NewVector, Step, check_step

__all__ = ["record_step", "record_step_ref"]


def record_step(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Record a step in the state, and write the next Lanczos vectors; on a GPU nothing waits for it.

    A stream that is not live any more keeps its scalars. One that has ended gets zeros for its next vector. One whose
    alpha or beta is not finite ends, and shows it in alphas or betas.

    Args:
        state: Updated in place.
        step: What the step found.
        vectors: For each stream that has room for another vector; all of the same dtypes.

    Raises:
        ConfigurationError: Lengths, shapes, dtypes, strides or devices do not fit.
        BackendError: HVP_ENGINE_BACKEND asks for a backend that cannot run here, or a launch failed.
    """
    check_step(state, step, vectors)
    kernels = optional_implementation("lanczos_step", state.alphas.device)
    (record_step_ref if kernels is None else kernels.record_step)(state, step, vectors)


def record_step_ref(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Do the same as `record_step` in plain PyTorch, on any device.

    Args:
        state: As in `record_step`.
        step: As in `record_step`.
        vectors: As in `record_step`.
    """
    j, beta = step.position, step.betas
    s = torch.tensor(step.members, dtype=torch.int64, device="cpu").to(beta.device, non_blocking=True)
    live, norms, lost = state.live[s], state.norms[s], state.lost[s]
    size = step.alphas.abs() + beta
    if j > 0:
        size += state.betas[s, j - 1]
    norms = torch.where(live & (size > norms), size, norms)
    finite = step.alphas.isfinite() & beta.isfinite()
    exhausted = finite & (beta <= step.tolerance * norms)
    state.norms[s] = norms
    state.alphas[s, j] = torch.where(live, step.alphas, state.alphas[s, j])
    state.betas[s, j] = torch.where(live & ~exhausted, beta, state.betas[s, j])
    state.steps[s] = torch.where(live, j + 1, state.steps[s])
    state.lost[s] = torch.where(live & ~(step.lost <= lost), step.lost, lost)
    live &= finite & ~exhausted & (j + 1 < state.last[s])
    state.live[s] = live
    divisors = torch.where(live, beta, torch.inf)  # a finite number over infinity is the zero that ended streams get
    for new in vectors:
        new.vector.div_(divisors[new.place])
        for target in (new.store, new.window):
            if target is not None:
                target.copy_(new.vector)
