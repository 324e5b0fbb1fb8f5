"""Blocks: named parts of the parameters, how flat vectors map onto them, and helpers that cut them out."""

from __future__ import annotations

from hvp_engine.blocks.layouts import Index, Layout
from hvp_engine.blocks.partition import Block, BlockPart, BlockSpec, Partition, ResolvedBlock, resolve
from hvp_engine.blocks.pieces import heads, projections, rows

__all__ = [
    "Block",
    "BlockPart",
    "BlockSpec",
    "Index",
    "Layout",
    "Partition",
    "ResolvedBlock",
    "heads",
    "projections",
    "resolve",
    "rows",
]
