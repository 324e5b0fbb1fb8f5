"""Generators of random numbers that a model, a loss or data hold for themselves, wherever they keep them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from hvp_engine.problem.generators import Source, source_of

_DEPTH = 4  # an attribute, the object there, its method's globals, what those refer to
_DEPTH_OF_DATA = 6  # a loader, its dataset, the transform of that, the ones in it, their attributes
_MOST = 4000  # objects looked at
_LONG = 100  # items: a container of more is data
_CONTAINERS = (Mapping, list, tuple, set, frozenset, deque)
_ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, Tensor)
_TENSORS = ("_parameters", "_buffers", "_modules")  # of a module
_LIBRARIES = ("site-packages", "dist-packages")


def held_sources(model: nn.Module, loss: object) -> list[Source]:
    """Find the generators that a model's modules, their code and a loss hold.

    Looked at are attributes, what the code of the loss and of the modules' ``forward`` refers to (closures, defaults,
    global names), and the attributes, items and code of what is found there. Of the code of installed packages only
    what it refers to directly is looked at.
    """
    seen: set[int] = set()
    classes = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}
    pending: deque[tuple[object, int]] = deque((kind.forward, 0) for kind in classes)
    pending.appendleft((loss, 0))
    for module in model.modules():
        seen.add(id(module))
        pending += [(value, 1) for key, value in vars(module).items() if key not in _TENSORS]
    return _reached(pending, seen, _DEPTH)


def sources_of_data(data: object) -> list[Source]:
    """Find the generators that data draw from: those of loaders, samplers and datasets, wherever they keep them."""
    return _reached(deque([(data, 0)]), set(), _DEPTH_OF_DATA)


def _reached(pending: deque[tuple[object, int]], seen: set[int], most: int) -> list[Source]:
    """Find the generators among some objects and in what they hold, each with how far it is from where one looks."""
    found: dict[int, Source] = {}
    while pending and len(seen) < _MOST:
        value, depth = pending.popleft()
        if isinstance(value, _ATOMS) or id(value) in seen or (isinstance(value, _CONTAINERS) and not value):
            continue
        seen.add(id(value))
        source = source_of(value)
        if source is not None:
            found[id(value)] = source
        elif depth < most:
            pending += [(inner, depth + 1) for inner in _behind(value, direct=depth == 0)]
    return list(found.values())


def _behind(value: Any, *, direct: bool) -> Iterator[object]:
    """Yield what an object holds or its code refers to."""
    if isinstance(value, _CONTAINERS):
        if len(value) <= _LONG:
            yield from value.values() if isinstance(value, Mapping) else value
        return
    if isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
        return
    if isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
        return
    if not isinstance(value, FunctionType):
        yield from getattr(value, "__dict__", {}).values()
        value = vars(type(value)).get("__call__")  # an object that can be called
        if not isinstance(value, FunctionType):
            return
    body = value.__code__
    if not direct and any(folder in body.co_filename for folder in _LIBRARIES):
        return
    for cell in value.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            yield cell.cell_contents
    yield from value.__defaults__ or ()
    yield from (value.__kwdefaults__ or {}).values()
    yield from (value.__globals__[name] for name in body.co_names if name in value.__globals__)
