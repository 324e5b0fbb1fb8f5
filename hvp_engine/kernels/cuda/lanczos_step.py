"""The recorded Lanczos step on a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvp_engine.kernels import loader
from hvp_engine.kernels.cuda.queue import queue, to_device
from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["record_step"]


def record_step(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Record a step in the state, and write the next Lanczos vectors.

    Args:
        state: As in `hvp_engine.kernels.lanczos_step.record_step`, on a CUDA device.
        step: As there.
        vectors: As there.

    Raises:
        ConfigurationError: The device is not a CUDA device.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    device, position = state.alphas.device, step.position
    # A stream that gets no further vector has taken its last step; the others have at least one left.
    table = np.array([(0, 0, 0, 0, row, position + 1, 0, 0) for row in step.members], dtype=np.int64)
    for place, vector, store, window in vectors:
        addresses = (address(vector), address(store), address(window))
        store_type = 0 if store is None else dtype_number(store.dtype)
        row, last = table[place, 4], position + 2
        table[place] = (*addresses, vector.shape[0], row, last, store_type, dtype_number(vector.dtype))
    with queue(device) as on:
        plan, words = loader.native.cuda_plan_record(table)
        entries = to_device(words, device)
        loader.native.cuda_record_step(
            plan,
            entries.data_ptr(),
            step.alphas.data_ptr(),
            step.alphas.stride(0),
            step.betas.data_ptr(),
            step.lost.data_ptr(),
            position,
            step.tolerance,
            [t.data_ptr() for t in (state.alphas, state.betas, state.norms, state.lost, state.steps, state.live)],
            state.alphas.shape[1],
            *on,
        )
