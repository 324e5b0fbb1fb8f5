"""Batched reorthogonalisation on a CUDA device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels import loader
from hvp_engine.kernels.cuda.queue import queue, to_device
from hvp_engine.kernels.streams import Projection, Rule

__all__ = ["reorthogonalize"]


def reorthogonalize(table: NDArray[np.int64], rule: Rule, found: Projection) -> None:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Args:
        table: As `hvp_engine.kernels.streams.stream_table` gives it, for streams on one CUDA device.
        rule: As in `hvp_engine.kernels.reorthogonalize.reorthogonalize`.
        found: Filled, on that device. Equal inputs give equal bits.

    Raises:
        ConfigurationError: A basis has too many rows in use, or the device is not a CUDA device.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    rows, device = int(table[:, 4].max()), found.norms.device
    if rows > loader.native.cuda_max_rows:
        raise ConfigurationError(
            f"A basis of {rows} rows is more than the CUDA kernels take ({loader.native.cuda_max_rows}); "
            "use fewer steps, or set HVP_ENGINE_BACKEND=torch."
        )
    with queue(device) as on:
        plan, words = loader.native.cuda_plan_reorthogonalize(table)
        entries = to_device(words, device)
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
        loader.native.cuda_reorthogonalize(
            plan,
            *rule.numbers,
            entries.data_ptr(),
            found.coefficients.data_ptr(),
            found.coefficients.shape[1],
            found.norms.data_ptr(),
            found.lost.data_ptr(),
            workspace.data_ptr(),
            *on,
        )
