"""Nodes of autograd graphs: which lie behind a tensor, and which node made which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node


def nodes_behind(tensors: Iterable[Tensor | None]) -> list[Node]:
    """List all nodes of the graph that made some tensors."""
    return nodes_from(tensor.grad_fn for tensor in tensors if tensor is not None)


def nodes_from(roots: Iterable[Node | None]) -> list[Node]:
    """List some nodes and all that lie behind them."""
    pending = list(roots)
    seen: dict[Node, None] = {}
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen[node] = None
            pending += [parent for parent, _ in node.next_functions]
    return list(seen)


def root_of(node: Node) -> Node:
    """Find the forward node that a node created by backward passes is a derivative of; a forward node is its own."""
    while (parent := parent_of(node)) is not None:
        node = parent
    return node


def parent_of(node: Node) -> Node | None:
    """Return the node during whose backward pass a node was created; None for a node of the forward pass."""
    parent: Node | None = metadata_of(node).get("parent_")
    return parent


def metadata_of(node: Node) -> dict[str, Any]:
    """Return what anomaly mode noted about a node: its parent and the stack that created it."""
    return cast("dict[str, Any]", node.metadata)  # PyTorch's stubs call this property a method


def name_of(node: Node) -> str:
    """Name a node without its namespace: "CtcLossBackward0".

    The method is taken from the type: in an autograd.Function, whose context is the node, ``ctx.name = ...`` hides it.
    """
    return str(type(node).name(node)).rpartition("::")[2]


def function_of(node: Node) -> type | None:
    """Return the autograd.Function in Python whose backward a node is; None for a node of PyTorch's own."""
    forward: type | None = getattr(type(node), "_forward_cls", None)
    return forward


def operation_of(node: Node) -> str:
    """Name the operation whose backward a node is: "CtcLossBackward0" is CtcLoss."""
    forward = function_of(node)
    return name_of(node).partition("Backward")[0] if forward is None else forward.__qualname__
