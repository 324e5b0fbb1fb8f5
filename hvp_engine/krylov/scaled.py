"""Lanczos vectors in 8 bits with scales, in the device's own memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hvp_engine.krylov.settling import SettlingBasis, Shape


class ScaledBasis(SettlingBasis):
    """All vectors in 8 bits (:mod:`hvp_engine.kernels.scaled_rows`), and the newest two unrounded beside them."""

    @classmethod
    def _allocate(cls, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {block: torch.empty(shape, dtype=dtype, device=device) for block, shape in shapes.items()}
