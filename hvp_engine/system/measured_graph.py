"""The size of an autograd graph, also where torch.func inside the loss forbids to watch what is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.system.memory import GraphSize, graph_size, saved_dtypes

__all__ = ["build_and_list_dtypes", "build_and_weigh"]

T = TypeVar("T")
Roots = Callable[[T], Iterable[Tensor | None]]


def build_and_weigh(build: Callable[[], T], roots: Roots[T], parameters: list[Tensor]) -> tuple[T, int]:
    """Build a graph and count the bytes that it keeps alive.

    Args:
        build: Makes the graph; called again, unwatched, where what it saves cannot be watched.
        roots: Returns the tensors whose graph it is; looked at in that case only.
        parameters: Tensors that do not count.

    Returns:
        What ``build`` made, and the bytes.
    """
    try:
        with graph_size(parameters) as size:
            built = build()
            return built, size.bytes
    except Exception as error:
        if not _refuses_hooks(error):
            raise
    built, size = build(), GraphSize(parameters)
    for tensor in _saved_behind(roots(built)):
        size.see(tensor)
    return built, size.bytes


def build_and_list_dtypes(build: Callable[[], T], roots: Roots[T]) -> tuple[T, set[torch.dtype]]:
    """Build a graph, as `build_and_weigh` does, and list the floating-point dtypes of what it keeps."""
    try:
        with saved_dtypes() as found:
            return build(), found
    except Exception as error:
        if not _refuses_hooks(error):
            raise
    built = build()
    return built, {tensor.dtype for tensor in _saved_behind(roots(built)) if tensor.is_floating_point()}


def _refuses_hooks(error: BaseException | None) -> bool:
    """Say whether a transform of torch.func stopped because saved tensors are watched, in this error or its causes."""
    while error is not None:
        if any(isinstance(text, str) and "saved tensor hooks" in text for text in error.args):
            return True
        error = error.__cause__
    return False


def _saved_behind(tensors: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Yield what the nodes of a graph saved."""
    pending: list[Node | None] = [tensor.grad_fn for tensor in tensors if tensor is not None]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [parent for parent, _ in node.next_functions]
        yield from _saved_by(node)


def _saved_by(node: Node) -> Iterator[Tensor]:
    names = [name for name in dir(node) if name.startswith("_saved_")]
    for name in ("saved_tensors", *names):
        try:
            value: Any = getattr(node, name, None)
        except RuntimeError:  # written to in place since: it cannot be looked at
            continue
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Tensor):
                yield item
