"""What the nodes of a graph tell through private names of PyTorch; where one is missing they do not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.autograd.graph import Node


def order_of_node(node: Node) -> int | None:
    """Return a number that is larger the earlier autograd executes a node of a graph; None where it does not tell."""
    ask: Callable[[], int] | None = getattr(node, "_sequence_nr", None)
    return None if ask is None else ask()


def ends_of_node(node: Node) -> Sequence[Any] | None:
    """Return what a node expects of each incoming gradient (``shape``, ``dtype``); None where it does not tell."""
    found: Sequence[Any] | None = getattr(node, "_input_metadata", None)
    return found
