"""Sums over processes in a fixed order: the same bits every time, whatever a library's own reduction does.

Every process adds up one part of the numbers, the terms in the order of their ranks, and hands the sum to the others:
as much traffic as a ring takes, and an order of additions that depends on nothing but the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 16 << 20  # bytes that are sent at once, and that a sum takes beside its terms a few times over


def add_up(tensors: Iterable[Tensor], group: dist.ProcessGroup, device: torch.device) -> None:
    """Add contiguous tensors up over the processes of a group, in place.

    Args:
        tensors: Of one dtype; the same shapes in every process.
        group: The processes.
        device: Where the group's messages are.
    """
    for bucket in _buckets(tensors):
        _add_up(bucket, group, device)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Cut tensors into flat pieces, and put pieces together that are sent at once."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for piece in torch.split(tensor.view(-1), max(1, _BUCKET // tensor.itemsize)):
            if bucket and size + piece.nbytes > _BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(piece)
            size += piece.nbytes
    if size:
        yield bucket


def _add_up(pieces: Sequence[Tensor], group: dist.ProcessGroup, device: torch.device) -> None:
    members, count = dist.get_world_size(group), sum(piece.numel() for piece in pieces)
    share = -(-count // members)
    sent = pieces[0].new_zeros(share * members, device=device)
    torch.cat([piece.to(device) for piece in pieces], out=sent[:count])
    terms = torch.empty_like(sent)
    dist.all_to_all_single(terms, sent, group=group)
    first, *others = terms.view(members, share)
    for term in others:
        first.add_(term)
    dist.all_gather(list(sent.view(members, share)), first, group=group)
    totals = torch.split(sent[:count], [piece.numel() for piece in pieces])
    for piece, total in zip(pieces, totals, strict=True):
        piece.copy_(total)
