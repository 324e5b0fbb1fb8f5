"""Vectors that callers give and products that they get: checked, and as the operator wants them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hvp_engine.blocks import Partition
from hvp_engine.errors import BlockError, ConfigurationError, NotFiniteError, not_finite
from hvp_engine.system.formatting import first_names


@torch.inference_mode(False)
def checked_rows(
    partition: Partition, vectors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return vectors of blocks as products take them.

    Args:
        partition: The blocks.
        vectors: (k, numel) per block; any subset of the blocks, k may differ.
        device: Where they are to be.
        dtype: What they are to be.

    Returns:
        The vectors, detached; the caller's own memory where nothing had to be converted.

    Raises:
        BlockError: A block is unknown.
        ConfigurationError: They are no mapping, a shape is wrong, or a vector is complex or not finite.
    """
    if not isinstance(vectors, Mapping):
        raise ConfigurationError(
            f"vectors must be a mapping of block names to (k, numel) tensors, not {type(vectors).__name__}: for "
            'the whole model {"full": vectors}.'
        )
    return {name: _rows(partition, name, of_block, device, dtype) for name, of_block in vectors.items()}


def refuse_nonfinite(partition: Partition, products: Mapping[str, Tensor]) -> None:
    """Refuse products with entries that are not finite.

    Raises:
        NotFiniteError: There is one; its block and parameters are named.
    """
    if not products or bool(torch.stack([product.isfinite().all() for product in products.values()]).all()):
        return
    name, product = next((n, p) for n, p in products.items() if not p.isfinite().all())
    block = partition.blocks[name]
    parts = zip(block.parts, block.split(product), strict=True)
    broken = [part.parameter for part, piece in parts if not piece.isfinite().all()]
    raise NotFiniteError(not_finite(f"of block {name!r}, in {first_names(list(dict.fromkeys(broken)))},"))


def _rows(partition: Partition, name: str, vectors: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if name not in partition.blocks:
        raise BlockError(f"There is no block {name!r}; the blocks are {', '.join(partition.blocks)}.")
    size = partition.blocks[name].numel
    if isinstance(vectors, Tensor) and (vectors.is_meta or vectors.is_nested or vectors.layout != torch.strided):
        kind = "on the meta device, without numbers" if vectors.is_meta else f"no dense tensor ({vectors.layout})"
        raise ConfigurationError(f"Vectors of block {name!r} are {kind}; give a dense tensor of shape (k, {size}).")
    if not isinstance(vectors, Tensor) or vectors.dim() != 2 or vectors.shape[1] != size:
        shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ConfigurationError(f"Vectors of block {name!r} must have shape (k, {size}), got {shape}.")
    if vectors.is_complex():
        raise ConfigurationError(f"Vectors of block {name!r} are complex; multiply real and imaginary parts apart.")
    if not torch.isfinite(vectors).all():
        raise ConfigurationError(f"A vector of block {name!r} has entries that are not finite.")
    converted = vectors.detach().to(device, dtype)
    return converted.clone() if converted.is_inference() else converted
