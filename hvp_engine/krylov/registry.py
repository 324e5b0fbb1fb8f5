"""Which storage keeps the Lanczos vectors, by the names that callers give."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hvp_engine.krylov.basis import Basis
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


# A new storage is one line here.
STORAGES: dict[str, Storage] = {
    "fp32": Storage(torch.float32),
    "bf16": Storage(torch.bfloat16),
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
