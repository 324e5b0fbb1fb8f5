"""Nodes of graphs on shapes, told apart by what they do: two layers of one form have nodes of the same kinds."""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.operators.autograd_nodes import function_of, name_of
from hvp_engine.planning.shapes import kernel_of_any
from hvp_engine.system.torch_nodes import ends_of_node

_GENERATED = re.compile(r"\w+Backward\d+")  # PyTorch's own nodes show all that they keep
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Shape(NamedTuple):
    """What is known of a tensor without data.

    Attributes:
        size: Its sizes.
        stride: Its strides.
        dtype: Its dtype.
        storage: Bytes of the memory that it lies in.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    storage: int

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.untyped_storage().nbytes())

    def make(self) -> Tensor:
        """Make such a tensor; inside the mode in which tensors have no data."""
        made = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="cpu")
        if made.untyped_storage().nbytes() >= self.storage:
            return made
        room = torch.empty(self.storage // self.dtype.itemsize, dtype=self.dtype, device="cpu")
        return room.as_strided(self.size, self.stride)


class _Unknown(Exception):
    """A node keeps something whose meaning is not known."""


def is_generated(node: Node) -> bool:
    """Say whether a node is of PyTorch's own that were generated from formulas."""
    return function_of(node) is None and _GENERATED.fullmatch(name_of(node)) is not None


def kind_of_node(node: Node) -> Hashable:
    """Describe a node so that nodes of equal descriptions do the same with gradients of equal shapes.

    Returns:
        The description; the node itself where it may keep what cannot be seen: a function of the user's.
    """
    ends = ends_of_node(node)
    if ends is None:
        return node
    try:
        kept = _kept_by(node)
    except (_Unknown, RuntimeError):  # or written to in place since: it cannot be looked at
        return node
    following = tuple(
        None if after is None else (_form(ends_of_node(after)), slot) for after, slot in node.next_functions
    )
    return (type(node), kept, _form(ends), following)


def _form(ends: Any) -> Hashable:
    """Describe what a node expects of incoming gradients."""
    return None if ends is None else tuple((tuple(end.shape), end.dtype) for end in ends)


def _kept_by(node: Node) -> Hashable:
    kernel = kernel_of_any(node)
    if kernel is not None:
        state = tuple((name, value) for name, value in vars(kernel).items() if name != "meter")
        context: Any = node
        return (type(kernel), state, getattr(context, "wanted", None), _plain(context.saved_tensors))
    if not is_generated(node):
        raise _Unknown
    return tuple(_plain(getattr(node, name)) for name in _saved_names(type(node)))


@cache
def _saved_names(kind: type[Node]) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_saved_"))


def _plain(value: Any) -> Hashable:
    """Return a value that a node keeps as one that can be compared."""
    if isinstance(value, Tensor):
        return Shape.of(value) if value.layout == torch.strided else _raise()
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return (type(value), value) if isinstance(value, _PLAIN) else _raise()  # 1, 1.0 and True are equal


def _raise() -> Hashable:
    raise _Unknown
