"""Batches as users give them: tensors, tuples or mappings of tensors; moved, split and fingerprinted here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hvp_engine.errors import ObjectiveError


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply a function to every tensor of a batch; other leaves are kept as they are."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, value) for value in batch)
    return batch


def tensors(batch: Any) -> list[Tensor]:
    """List all tensors of a batch, in a fixed order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, batch)
    return found


def check_tensors(number: int, batch: Any) -> None:
    """Raise ObjectiveError for a batch without tensors."""
    if not tensors(batch):
        raise ObjectiveError(
            f"Batch {number} is a {type(batch).__name__} without tensors; batches must be tensors, or tuples or "
            "mappings of tensors."
        )


def samples(batch: Any) -> int | None:
    """Return the leading dimension shared by all non-scalar tensors of a batch; None where there is none."""
    sizes = {tensor.shape[0] for tensor in tensors(batch) if tensor.dim() > 0}
    return sizes.pop() if len(sizes) == 1 else None


def leading(batch: Any) -> int | None:
    """Return the leading dimension of the first non-scalar tensor: the samples that a mean loss averages over."""
    return next((tensor.shape[0] for tensor in tensors(batch) if tensor.dim() > 0), None)


def numel(batch: Any) -> int:
    """Count the numbers in all tensors of a batch."""
    return sum(tensor.numel() for tensor in tensors(batch))


def largest(data: Iterable[Any]) -> Any:
    """Return the batch with the most numbers: what it needs is enough for the others; None where there is no batch."""
    return max(data, key=numel, default=None)


def cut(batch: Any, start: int, stop: int) -> Any:
    """Take samples ``start`` to ``stop`` of a batch (views); scalars are passed on whole."""
    return map_tensors(lambda tensor: tensor[start:stop] if tensor.dim() > 0 else tensor, batch)


def few_samples(batch: Any, count: int = 2) -> Any:
    """Take a few samples of a batch, for checks; the batch itself where its tensors share no leading dimension."""
    size = samples(batch)
    return batch if size is None else cut(batch, 0, min(size, count))


def fingerprint(batch: Any) -> str:
    """Digest shapes, dtypes and contents, so that a changed batch is noticed between sweeps."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors(batch):
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def layout(batch: Any) -> tuple[tuple[int, ...], ...]:
    """List the shapes of all tensors of a batch."""
    return tuple(tuple(tensor.shape) for tensor in tensors(batch))
