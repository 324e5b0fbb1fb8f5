"""Which storage keeps the Lanczos vectors, by the dtype in which they are kept."""

from __future__ import annotations

import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.storage import FullBasis, RoundedBasis, WindowBasis

# A new storage is one line here. None keeps the newest two vectors; the working dtype itself is never looked up.
STORAGES: dict[torch.dtype | None, type[Basis]] = {
    None: WindowBasis,
    torch.float32: RoundedBasis,
    torch.bfloat16: RoundedBasis,
}


def storage_for(dtype: torch.dtype, store_dtype: torch.dtype | None) -> type[Basis]:
    """Return the storage of vectors of a working dtype that are kept in another, or the same.

    Raises:
        ConfigurationError: No storage serves that dtype.
    """
    if store_dtype == dtype:
        return FullBasis
    if store_dtype not in STORAGES:
        known = ", ".join(sorted(str(key) for key in {dtype, *STORAGES} if key is not None))
        raise ConfigurationError(f"No storage keeps Lanczos vectors of {dtype} in {store_dtype}; use one of {known}.")
    return STORAGES[store_dtype]


def bytes_per_stream(steps: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
    """Return the bytes that one stream's vectors take on the device.

    Args:
        steps: Lanczos steps asked for; a stream takes at most ``numel``.
        numel: Length of a vector.
        dtype: Working dtype.
        store_dtype: Dtype of the kept vectors; None where two are kept.
    """
    return storage_for(dtype, store_dtype).bytes_per_stream(min(steps, numel), numel, dtype, store_dtype)
