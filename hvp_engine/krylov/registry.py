"""Which storage keeps the Lanczos vectors, by the names that callers give."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hvp_engine.kernels.scaled_rows import row_length
from hvp_engine.krylov.basis import Basis, Elsewhere
from hvp_engine.krylov.mapped import MappedBasis
from hvp_engine.krylov.offloaded import OffloadedBasis
from hvp_engine.krylov.scaled import ScaledBasis
from hvp_engine.krylov.storage import FullBasis, RoundedBasis, WindowBasis


class Storage(NamedTuple):
    """One way to keep the vectors.

    Attributes:
        dtype: In which they are kept.
        kind: What keeps them; None takes a plain tensor, beside a window of unrounded ones where the dtype is not the
            working one.
    """

    dtype: torch.dtype
    kind: type[Basis] | None = None

    @property
    def elsewhere(self) -> Elsewhere | None:
        """What keeps them, where that is not the device's own memory."""
        return None if self.kind is None else self.kind.elsewhere

    def beside_fp64(self) -> Storage:
        """Return how the vectors of products in float64 are kept: in that dtype, in the same place."""
        return Storage(torch.float64, self.kind if self.elsewhere else None)


AUTO = "auto"  # leaves the choice to :func:`hvp_engine.scheduling.storages.choose_basis`

# A new storage is one line here.
STORAGES: dict[str, Storage] = {
    "fp32": Storage(torch.float32),
    "bf16": Storage(torch.bfloat16),
    "int8": Storage(torch.int8, ScaledBasis),
    "fp32-offload": Storage(torch.float32, OffloadedBasis),
    "bf16-offload": Storage(torch.bfloat16, OffloadedBasis),
    "int8-offload": Storage(torch.int8, OffloadedBasis),
    "fp32-mmap": Storage(torch.float32, MappedBasis),
    "bf16-mmap": Storage(torch.bfloat16, MappedBasis),
    "int8-mmap": Storage(torch.int8, MappedBasis),
}


def storage_for(dtype: torch.dtype, kept: Storage | None) -> type[Basis]:
    """Return the class that keeps vectors of a working dtype; where none is kept, the one of the newest two."""
    if kept is None:
        return WindowBasis
    if kept.kind is not None:
        return kept.kind
    return FullBasis if kept.dtype == dtype else RoundedBasis


def bytes_per_stream(steps: int, numel: int, dtype: torch.dtype, kept: Storage | None) -> int:
    """Return the bytes that one stream's vectors take on the device.

    Args:
        steps: Lanczos steps asked for; a stream takes at most ``numel``.
        numel: Length of a vector.
        dtype: Working dtype.
        kept: How the vectors are kept; None where the newest two are.
    """
    store_dtype = None if kept is None else kept.dtype
    return storage_for(dtype, kept).bytes_per_stream(min(steps, numel), numel, dtype, store_dtype)


def row_bytes(numel: int, kept: Storage) -> int:
    """Return the bytes of one kept vector."""
    return row_length(kept.dtype, numel) * kept.dtype.itemsize


def bytes_elsewhere(steps: int, numel: int, kept: Storage | None) -> int:
    """Return the bytes that one stream's vectors take in host memory or on the disk; arguments as above."""
    if kept is None or kept.kind is None:
        return 0
    return kept.kind.bytes_elsewhere(min(steps, numel), numel, kept.dtype)
