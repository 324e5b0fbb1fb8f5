"""Nodes of autograd graphs: which lie behind a tensor, and which node made which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node


def nodes_behind(tensors: Iterable[Tensor | None]) -> list[Node]:
    """List all nodes of the graph that made some tensors."""
    pending = [tensor.grad_fn for tensor in tensors if tensor is not None]
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


def operation_of(node: Node) -> str:
    """Name the operation whose backward a node is: "CtcLossBackward0" is CtcLoss."""
    forward = getattr(node, "_forward_cls", None)
    if forward is not None:
        return str(forward.__qualname__)
    return node.name().rpartition("::")[2].partition("Backward")[0]
