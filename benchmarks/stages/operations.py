"""Stage 1: every operation, all three passes, against fp64 on the CPU."""

from __future__ import annotations

from functools import partial

import torch
from validation.operations import check_operations

from hvp_engine.kernels.registry import available_backends

from .checked import Checks
from .runner import Emit

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Check the device's first choice of kernels."""
    checks = Checks(emit)
    backend = available_backends(device)[0]
    for name, dtype in _DTYPES.items():
        checks.take(f"operations, {name}", partial(check_operations, device, backend, {name: dtype}, small))
    checks.verdict()
