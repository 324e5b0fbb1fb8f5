"""Batches as users give them: moved, cut, joined and fingerprinted here, whatever structure their tensors are in."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hvp_engine.errors import ObjectiveError
from hvp_engine.problem.tree import ARRAYS, CONSTANTS, leaves, map_leaves
from hvp_engine.system.layouts import dense_parts, kind_of
from hvp_engine.system.torch_private import without_torch_functions

FEW = 2  # samples that checks take


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply a function to every tensor of a batch; other leaves are kept as they are."""

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if isinstance(leaf, PackedSequence):  # its batch sizes stay where they are, on the CPU
            order = [None if t is None else function(t) for t in (leaf.sorted_indices, leaf.unsorted_indices)]
            return PackedSequence(function(leaf.data), leaf.batch_sizes, *order)
        return leaf

    return map_leaves(mapped, batch)


def rebuilt(batch: Any) -> Any:
    """Return a batch of the same tensors in new containers, which a loss may take them out of."""
    return map_leaves(lambda leaf: leaf, batch)


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Bring a batch to a device, and its floating-point numbers to a dtype; None leaves them as they are.

    Complex numbers get parts of that dtype.
    """

    def move(tensor: Tensor) -> Tensor:
        if dtype is not None and tensor.is_complex():
            return tensor.to(device, torch.promote_types(dtype, torch.complex32))
        return tensor.to(device, dtype) if dtype is not None and tensor.is_floating_point() else tensor.to(device)

    there = map_tensors(move, batch)
    return there if dtype is None else map_leaves(lambda leaf: _cast_array(leaf, dtype), there)


def _cast_array(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind != "f":
        return leaf
    return leaf.astype(np.float64 if dtype == torch.float64 else np.float32)


def tensors(batch: Any) -> list[Tensor]:
    """List all tensors of a batch, in a fixed order."""
    found: list[Tensor] = []
    for _, leaf in leaves(batch):
        found += [leaf] if isinstance(leaf, Tensor) else _packed(leaf) if isinstance(leaf, PackedSequence) else []
    return found


def _packed(sequence: PackedSequence) -> list[Tensor]:
    return [tensor for tensor in sequence if tensor is not None]


def check_tensors(number: int, batch: Any) -> None:
    """Raise ObjectiveError for a batch without tensors, or one nested too deeply to be walked."""
    with _to_the_end():
        found = any(isinstance(leaf, ARRAYS) for _, leaf in leaves(batch))
    if not found:
        raise ObjectiveError(
            f"Batch {number}, of type {type(batch).__name__}, has no tensors; batches must be tensors, or tuples, "
            "mappings or objects that hold tensors."
        )


@contextlib.contextmanager
def _to_the_end() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise ObjectiveError(
            "A batch is nested too deeply, or holds a list that holds itself; give its tensors in a tuple or a mapping."
        ) from error


def check_values(number: int, batch: Any) -> None:
    """Raise ObjectiveError for a batch without tensors, or with one that has a shape and no numbers."""
    check_tensors(number, batch)
    if any(tensor.is_meta for tensor in tensors(batch)):
        raise ObjectiveError(
            f'Batch {number} has tensors on the "meta" device, which have shapes and no numbers; give the data itself, '
            "or use hvp_engine.plan, which needs none."
        )


def samples(batch: Any) -> int | None:
    """Return the leading dimension shared by all non-scalar tensors and arrays of a batch; None where there is none.

    A batch with a sparse or nested tensor, or a packed sequence, has none: its samples cannot be cut out.
    """
    sizes: set[int] = set()
    with without_torch_functions():
        for _, leaf in leaves(batch):
            if isinstance(leaf, PackedSequence) or (isinstance(leaf, Tensor) and kind_of(leaf) is not None):
                return None
            if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0:
                sizes.add(leaf.shape[0])
    return sizes.pop() if len(sizes) == 1 else None


def leading(batch: Any) -> int | None:
    """Return the leading dimension of the first non-scalar tensor: the samples that a mean loss averages over."""
    return next((tensor.size(0) for tensor in tensors(batch) if tensor.dim() > 0), None)


def numel(batch: Any) -> int:
    """Count the numbers in all tensors of a batch."""
    return sum(part.numel() for tensor in tensors(batch) for part in dense_parts(tensor))


def largest(data: Iterable[Any]) -> Any:
    """Return the batch with the most numbers: what it needs is enough for the others; None where there is no batch."""
    return max(data, key=numel, default=None)


def cut(batch: Any, start: int, stop: int) -> Any:
    """Take samples ``start`` to ``stop`` of a batch (views).

    Lists and tuples of labels are cut with the tensors where they have one entry per sample; scalars and whatever else
    the batch holds are passed on whole.
    """
    size = samples(batch)

    def piece(leaf: Any) -> Any:
        return leaf[start:stop] if _has_samples(leaf, size) else leaf

    return map_leaves(piece, batch)


def _has_samples(leaf: Any, size: int | None) -> bool:
    """Whether a leaf has one entry per sample of a batch of ``size`` samples."""
    if isinstance(leaf, (Tensor, np.ndarray)):
        return leaf.ndim > 0
    return type(leaf) in (list, tuple) and len(leaf) == size


def joined(first: Any, second: Any) -> Any:
    """Make one batch of the samples of two.

    Returns:
        The batch; None where the two differ in more than their samples, so that there is no such batch.
    """
    sizes = samples(first), samples(second)
    ones, others = list(leaves(first)), list(leaves(second))
    if None in sizes or [path for path, _ in ones] != [path for path, _ in others]:
        return None
    if layout(first, trailing=True) != layout(second, trailing=True):
        return None
    values = []
    for (_, a), (_, b) in zip(ones, others, strict=True):
        if _has_samples(a, sizes[0]) != _has_samples(b, sizes[1]):
            return None
        if not _has_samples(a, sizes[0]):
            if _digest(a) != _digest(b):
                return None
            values.append(a)
        elif isinstance(a, Tensor):
            values.append(torch.cat((a, b)))
        else:
            values.append(np.concatenate((a, b)) if isinstance(a, np.ndarray) else a + b)
    rest = iter(values)
    return map_leaves(lambda _: next(rest), first)


def few_samples(batch: Any, count: int = FEW) -> Any:
    """Take a few samples of a batch, for checks; the batch itself where its tensors share no leading dimension."""
    size = samples(batch)
    return batch if size is None or size <= count else cut(batch, 0, count)


def fingerprint(batch: Any) -> str:
    """Digest shapes, dtypes and contents, so that a changed batch is noticed between sweeps.

    The order of a mapping's keys does not count, nor whether labels are in a list or a tuple.
    """
    digest = hashlib.blake2b(digest_size=16)
    with _to_the_end():
        for _, leaf in sorted(leaves(batch), key=lambda found: found[0]):
            for piece in _contents(leaf):
                digest.update(piece)
    return digest.hexdigest()


def _digest(leaf: Any) -> bytes:
    return b"".join(bytes(piece) for piece in _contents(leaf))


def _contents(leaf: Any) -> Iterator[Any]:
    """Bytes that change whenever a leaf does; none of an object that nothing is known of."""
    if isinstance(leaf, (Tensor, PackedSequence)):
        for tensor in _packed(leaf) if isinstance(leaf, PackedSequence) else [leaf]:
            yield f"{'' if kind_of(tensor) is None else tensor.layout}{_shape(tensor)}{tensor.dtype}".encode()
            for part in dense_parts(tensor):
                flat = part.detach().resolve_conj().resolve_neg().contiguous().cpu().reshape(-1)
                if flat.numel():
                    yield flat.view(torch.uint8).numpy().data
    elif isinstance(leaf, np.ndarray):
        yield f"{leaf.shape}{leaf.dtype}".encode()
        if leaf.dtype.hasobject:
            yield from _contents(leaf.tolist())
        else:
            yield np.ascontiguousarray(leaf).tobytes()
    elif isinstance(leaf, (list, tuple)):
        yield f"[{len(leaf)}]".encode()
        for value in leaf:
            yield from _contents(value)
    elif isinstance(leaf, CONSTANTS):
        yield f"{leaf!r},".encode()


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    """Return a tensor's shape; of a nested one the shapes of its components."""
    return tuple(tuple(part.shape) for part in dense_parts(tensor)) if tensor.is_nested else tuple(tensor.shape)


@dataclass(frozen=True)
class Entry:
    """Where a tensor or array stands in its batch, and what it is like."""

    path: str
    dtype: str
    shape: tuple[Any, ...]


def layout(batch: Any, *, trailing: bool = False) -> tuple[Entry, ...]:
    """List the tensors and arrays of a batch.

    Args:
        batch: The batch.
        trailing: Leave out the leading dimensions: what is equal then differs in the number of samples alone.
    """
    found = []
    for path, leaf in leaves(batch):
        for part in _packed(leaf) if isinstance(leaf, PackedSequence) else [leaf]:
            if isinstance(part, (Tensor, np.ndarray)):
                shape = _shape(part) if isinstance(part, Tensor) else part.shape
                found.append(Entry(path, str(part.dtype), shape[1:] if trailing else shape))
    return tuple(found)


def shapes(entries: tuple[Entry, ...]) -> str:
    """Put a layout into words."""
    return ", ".join(str(entry.shape) for entry in entries)
