"""Blocks: named parts of the parameters, how flat vectors map onto them, and helpers that cut them out.

:class:`Block` is a part by name; :func:`heads`, :func:`rows` and :func:`projections` cut tensors into such parts;
:func:`paper` names the parts that papers look at; :func:`resolve` checks any specification against a model.
"""

from __future__ import annotations

from hvp_engine.blocks.layouts import Index, Layout
from hvp_engine.blocks.paper import paper
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
    "paper",
    "projections",
    "resolve",
    "rows",
]


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
