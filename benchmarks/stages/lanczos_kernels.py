"""Stage 2: the kernels of Lanczos and of the quadrature, by every backend, against fp64 on the CPU."""

from __future__ import annotations

from functools import partial

import torch
from validation.kernels import check_quadrature, check_record_step, check_reorthogonalize

from hvp_engine.kernels.registry import available_backends, families_of

from .checked import Checks
from .runner import Emit


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Check each backend but plain PyTorch."""
    checks = Checks(emit)
    for backend in available_backends(device)[:-1]:
        checks.take(f"{backend} reorthogonalize", partial(check_reorthogonalize, device, backend, small))
        checks.take(f"{backend} record step", partial(check_record_step, device, backend, small))
        if "tridiagonal" in families_of(backend):
            checks.take(f"{backend} quadrature", partial(check_quadrature, device, backend, small))
    checks.verdict()
