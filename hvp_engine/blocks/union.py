"""Blocks and, as one more, all of them together: for what lies between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine.blocks.partition import Block, BlockPart, BlockSpec, Partition, resolve
from hvp_engine.errors import BlockError


def with_union(model: nn.Module, blocks: BlockSpec) -> list[Block]:
    """Return blocks that do not overlap, and last the block of all their entries, in their order.

    Args:
        model: The model.
        blocks: As for :func:`hvp_engine.blocks.resolve`.

    Raises:
        BlockError: There are no two blocks, two of them share an entry, or the specification is none.
    """
    partition = resolve(model, blocks)
    if len(partition.blocks) < 2:
        (only,) = partition.blocks
        raise BlockError(
            f"What is between blocks needs two of them at least, and there is one, {only!r}: give a list of parameter "
            "names or a mapping of names to globs, or blocks='parameter' or 'module'."
        )
    _refuse_overlaps(model, partition)
    listed = [
        Block(name, [(part.parameter, part.index) for part in block.parts]) for name, block in partition.blocks.items()
    ]
    name = "all blocks"
    while name in partition.blocks:
        name += "+"
    return [*listed, Block(name, [part for block in listed for part in block.parts])]


def _refuse_overlaps(model: nn.Module, partition: Partition) -> None:
    """Refuse an entry that is in two blocks: products with their union would count it twice.

    Raises:
        BlockError: There is one.
    """
    holders: dict[str, list[tuple[str, BlockPart]]] = {}
    for name, block in partition.blocks.items():
        for part in block.parts:
            holders.setdefault(part.parameter, []).append((name, part))
    for parameter, shared in holders.items():
        if len(shared) == 1:
            continue
        shape = model.get_parameter(parameter).shape
        taken = torch.zeros(shape, dtype=torch.bool, device="cpu")
        for number, (name, part) in enumerate(shared):
            if not bool(taken[_on_cpu(part)].any()):
                taken[_on_cpu(part)] = True
                continue
            before = next(other for other, earlier in shared[:number] if _meet(earlier, part, shape))
            raise BlockError(
                f"Blocks {before!r} and {name!r} overlap in parameter {parameter!r}: what is between blocks needs "
                "blocks that share no entry; leave it to one of them."
            )


def _meet(one: BlockPart, other: BlockPart, shape: torch.Size) -> bool:
    """Say whether two parts of one parameter share an entry."""
    taken = torch.zeros(shape, dtype=torch.bool, device="cpu")
    taken[_on_cpu(one)] = True
    return bool(taken[_on_cpu(other)].any())


def _on_cpu(part: BlockPart) -> Any:
    """Return what a part takes, as an index into tensors on the CPU."""
    if part.index is None:
        return ...
    return part.index.cpu() if isinstance(part.index, Tensor) else part.index
