"""Vectors that callers give and products that they get: checked, and as the operator wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvp_engine.blocks import Partition, ResolvedBlock
from hvp_engine.blocks.partition import near_names
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
    return {name: _rows(block_named(partition, name), v, device, dtype) for name, v in vectors.items()}


def block_named(partition: Partition, name: Any) -> ResolvedBlock:
    """Return a block by its name.

    Raises:
        BlockError: There is none of that name.
    """
    if not isinstance(name, str) or name not in partition.blocks:
        blocks = list(partition.blocks)
        raise BlockError(
            f"There is no block {name!r}; the blocks are {first_names(blocks)}.{near_names(str(name), blocks)}"
        )
    return partition.blocks[name]


def dense_tensor(values: Any, what: str) -> Tensor:
    """Return a tensor, detached, or a copy of a NumPy array as one.

    Args:
        values: Tensor or array.
        what: What they are, in words that "must be" may follow.

    Raises:
        ConfigurationError: They are neither, or numbers of another kind, or have no numbers one after the other.
    """
    if isinstance(values, np.ndarray):
        try:
            values = torch.from_numpy(np.array(values, order="C"))  # a copy: torch takes no read-only memory
        except TypeError as error:
            raise ConfigurationError(f"{what} must be floats, not {values.dtype}, which torch has not.") from error
    if not isinstance(values, Tensor):
        raise ConfigurationError(f"{what} must be a torch tensor or a NumPy array, not {type(values).__name__}.")
    if values.is_meta or values.is_nested or values.layout != torch.strided:
        kind = "on the meta device, without numbers" if values.is_meta else f"not one ({values.layout})"
        raise ConfigurationError(f"{what} must be a dense tensor, and is {kind}.")
    if values.is_complex():
        raise ConfigurationError(f"{what} must be real, and is complex; multiply real and imaginary parts apart.")
    return values.detach()


def refuse_nonfinite(partition: Partition, products: Mapping[str, Tensor]) -> None:
    """Refuse products with entries that are not finite.

    Raises:
        NotFiniteError: There is one; its block and parameters are named.
    """
    if not products or bool(torch.stack([product.sum() for product in products.values()]).isfinite().all()):
        return  # no sum is finite to which something else was added
    broken_blocks = [(name, product) for name, product in products.items() if not product.isfinite().all()]
    if not broken_blocks:  # a sum overflowed
        return
    name, product = broken_blocks[0]
    block = partition.blocks[name]
    parts = zip(block.parts, block.split(product), strict=True)
    broken = [part.parameter for part, piece in parts if not piece.isfinite().all()]
    raise NotFiniteError(not_finite(f"of block {name!r}, in {first_names(list(dict.fromkeys(broken)))},"))


def _rows(block: ResolvedBlock, vectors: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    what, size = f"The tensor of vectors of block {block.name!r}", block.numel
    if not isinstance(vectors, Tensor):
        raise ConfigurationError(f"{what} must have shape (k, {size}), got {type(vectors).__name__}.")
    dense = dense_tensor(vectors, what)
    if dense.dim() != 2 or dense.shape[1] != size:
        raise ConfigurationError(f"{what} must have shape (k, {size}), got {tuple(dense.shape)}.")
    converted = dense.to(device, dtype)
    if not converted.sum().isfinite() and not torch.isfinite(converted).all():
        raise ConfigurationError(f"{what} must be finite, and is not in {str(dtype).removeprefix('torch.')}.")
    return converted.clone() if converted.is_inference() else converted
