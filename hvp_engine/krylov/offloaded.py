"""Lanczos vectors in the host's memory, for a device that has less of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.settling import SettlingBasis, Shape


class OffloadedBasis(SettlingBasis):
    """All vectors in host memory, and the newest two on the device: every step reads the others from there.

    Where the host is the device nothing is gained; :func:`hvp_engine.scheduling.storages.check_place` refuses it.
    """

    elsewhere: ClassVar[Elsewhere | None] = "host memory"

    @classmethod
    def _allocate(cls, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {block: torch.empty(shape, dtype=dtype, device="cpu") for block, shape in shapes.items()}
