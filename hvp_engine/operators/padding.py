"""Rows of embeddings that get no gradient by design: to the derivatives they are constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.operators.autograd_nodes import name_of
from hvp_engine.ops.embedding import padding_tokens


def padding_rows(nodes: Iterable[Node], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the rows of tables that a `padding_idx` keeps the gradient from.

    Args:
        nodes: The graph of a loss.
        parameters: Where the tables are looked for.

    Returns:
        Row numbers by the names of the tables that have such rows.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, Tensor] = {}
    for node in nodes:
        rows = _rows(node)
        if rows is None or not rows.numel():
            continue
        name = names.get(id(_source(node)))
        if name is not None:
            found[name] = torch.cat([found[name], rows]) if name in found else rows
    return found


def _rows(node: Any) -> Tensor | None:
    if name_of(node) != "EmbeddingBackward0":
        return padding_tokens(node)
    row, rows = int(node._saved_padding_idx), int(node._saved_weight_sym_argsize_0)
    # PyTorch has -1 for none, and shows it as a large number without a sign.
    return torch.tensor([row], device="cpu") if 0 <= row < rows else None


def _source(node: Node) -> Tensor | None:
    """Follow the table of a lookup to its parameter, through casts."""
    source = node.next_functions[0][0]
    while source is not None and name_of(source) == "ToCopyBackward0":
        source = source.next_functions[0][0]
    variable: Tensor | None = getattr(source, "variable", None)
    return variable
