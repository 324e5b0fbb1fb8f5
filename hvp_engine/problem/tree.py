"""The structure of batches as users give them: containers and objects that hold tensors, walked and rebuilt alike.

Tuples, lists, mappings and any object whose attributes hold tensors (dataclasses, namespaces, batch classes of
libraries) are opened; what is rebuilt keeps its class. Containers are rebuilt even where no leaf changes, so that a
loss that takes something out of its batch leaves the user's own batch alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hvp_engine.errors import ObjectiveError
from hvp_engine.system.formatting import first_line

ARRAYS = (Tensor, np.ndarray, PackedSequence)
CONSTANTS = (str, bytes, int, float, complex, type(None), Enum, np.generic, torch.dtype, torch.device)
_CLOSED = (*ARRAYS, *CONSTANTS, type, ModuleType, nn.Module)


def leaves(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every leaf, in a fixed order.

    A leaf is a tensor, an array, a packed sequence, or whatever holds none of these: a number, a string, a list of
    labels.
    """
    yield from _leaves(node, "", [])


def map_leaves(function: Callable[[Any], Any], node: Any) -> Any:
    """Apply a function to every leaf, in the order of `leaves`, and rebuild the structure around the results.

    Raises:
        ObjectiveError: An object that holds tensors cannot be copied.
    """
    return _mapped(function, node, [])


def _leaves(node: Any, path: str, above: list[int]) -> Iterator[tuple[str, Any]]:
    if _is_leaf(node, above):
        yield path, node
        return
    above.append(id(node))
    for name, value in _children(node):
        yield from _leaves(value, path + name, above)
    above.pop()


def _mapped(function: Callable[[Any], Any], node: Any, above: list[int]) -> Any:
    if _is_leaf(node, above):
        return function(node)
    above.append(id(node))
    rebuilt = _rebuilt(node, lambda value: _mapped(function, value, above))
    above.pop()
    return rebuilt


def _is_leaf(node: Any, above: list[int]) -> bool:
    return isinstance(node, _CLOSED) or id(node) in above or not _holds_arrays(node, above)


def _holds_arrays(node: Any, above: list[int]) -> bool:
    """Whether a node is a tensor or array, or holds one at any depth."""
    if isinstance(node, _CLOSED):
        return isinstance(node, ARRAYS)
    if id(node) in above:
        return False
    above.append(id(node))
    values = node if isinstance(node, (list, tuple)) else (value for _, value in _children(node))
    held = any(_holds_arrays(value, above) for value in values)
    above.pop()
    return held


def _children(node: Any) -> list[tuple[str, Any]]:
    """Name and value of everything that a node holds."""
    if isinstance(node, (list, tuple)):
        return [(f"[{number}]", value) for number, value in enumerate(node)]
    attributes = [(f".{name}", value) for name, value in _attributes(node).items()]
    # A mapping that is no dict keeps its entries in its attributes.
    items = isinstance(node, dict) or (isinstance(node, Mapping) and not attributes)
    return [*([(f"[{key!r}]", value) for key, value in node.items()] if items else ()), *attributes]


def _attributes(node: Any) -> dict[str, Any]:
    """Return the attributes that an object has of its own, in ``__dict__`` and in slots."""
    found = dict(getattr(node, "__dict__", None) or {})
    for cls in type(node).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(node, name):
                found[name] = getattr(node, name)
    return found


def _rebuilt(node: Any, inner: Callable[[Any], Any]) -> Any:
    if isinstance(node, tuple):
        values = [inner(value) for value in node]
        return node._make(values) if hasattr(node, "_make") else type(node)(values)
    if type(node) is dict or (isinstance(node, Mapping) and not isinstance(node, dict) and not _attributes(node)):
        return {key: inner(value) for key, value in node.items()}
    try:
        copied = copy.copy(node)
    except Exception as error:
        raise ObjectiveError(
            f"A batch holds a {type(node).__name__}, which cannot be copied ({first_line(error)}); give its tensors as "
            "a tuple or a mapping."
        ) from error
    if isinstance(copied, list):
        copied[:] = [inner(value) for value in copied]
        return copied
    own = _attributes(copied)  # of the copy, whose parts may know whose parts they are; entries may be attributes too
    if isinstance(copied, dict):
        for key, value in list(copied.items()):
            copied[key] = inner(value)
    for name, value in own.items():
        changed = inner(value)
        if changed is not value:
            object.__setattr__(copied, name, changed)
    return copied
