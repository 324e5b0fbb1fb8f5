"""A model and a loss in words that two runs can compare: classes, settings, hooks, and the code of functions.

Only what can change a Hessian without changing a parameter, a buffer or the data has a place here. What is not plain
data (tensors that are no buffers, caches, handles) and the modes of modules show in the losses instead.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvp_engine.system.torch_private import hooks_of_module, hooks_of_tensor

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, enum.Enum, range)
_DEPTH = 6  # of settings within settings, and of functions within functions
_LONGEST = 4000  # characters of one setting; of longer ones a digest stands for the rest
_MOST = 10_000  # items of one; of more their number stands for them
_AUTHORS = {"transformers_version"}  # settings that say who wrote a configuration, not what it does


def describe_modules(model: nn.Module) -> dict[str, str]:
    """Describe every module by name: class and settings."""
    seen: set[int] = set()
    return {name: _module(module, seen) for name, module in model.named_modules()}


def describe_hooks(model: nn.Module) -> dict[str, list[str]]:
    """List the hooks of modules and parameters that have any, by name, in the order in which they run."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if hooks := hooks_of_module(module):
            found[f"module {name}".rstrip()] = [describe_function(hook) for hook in hooks]
    for name, parameter in model.named_parameters():
        if hooks := hooks_of_tensor(parameter):
            found[f"parameter {name}"] = [describe_function(hook) for hook in hooks]
    return found


def describe_function(function: Callable[..., Any]) -> str:
    """Name a function and digest what it does: code, defaults, and what it closes over as far as that is data."""
    parts: list[bytes] = []
    _collect(function, parts, _DEPTH)
    return f"{_name(function)} [{hashlib.blake2b(b'|'.join(parts), digest_size=8).hexdigest()}]"


def digest_of(tensor: Tensor) -> str:
    """Digest shape, dtype and content of a tensor."""
    digest = hashlib.blake2b(f"{tuple(tensor.shape)}{tensor.dtype}".encode(), digest_size=16)
    dense = tensor.detach()
    if dense.layout != torch.strided:
        dense = dense.to_dense()
    flat = dense.resolve_conj().resolve_neg().contiguous().cpu().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _module(module: nn.Module, seen: set[int]) -> str:
    try:
        shown = " ".join(module.extra_repr().split())
    except Exception:  # someone else's code, which may be for the eye alone
        shown = ""
    settings = {
        key: text
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and key != "training" and f"{key}=" not in shown
        if (text := _setting(value, seen, _DEPTH)) is not None
    }
    inside = ", ".join(part for part in (shown, *(f"{key}={text}" for key, text in settings.items())) if part)
    return f"{type(module).__name__}({inside})"


def _setting(value: Any, seen: set[int], depth: int) -> str | None:
    """Put a setting into words; None where it is neither plain data nor a function, or was described already."""
    text: str | None = None
    if isinstance(value, str) and "/" in value:  # a path: where something is, not what
        return None
    if isinstance(value, _PLAIN):
        text = repr(value)
    elif isinstance(value, (Tensor, nn.Module, np.ndarray)) or depth == 0:
        return None
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)) and len(value) > _MOST:
        text = f"{type(value).__name__} of {len(value)}"
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = [_setting(item, seen, depth - 1) or type(item).__name__ for item in value]
        text = f"{type(value).__name__}({', '.join(sorted(items) if isinstance(value, (set, frozenset)) else items)})"
    elif isinstance(value, Mapping):
        pairs = ((key, _setting(item, seen, depth - 1)) for key, item in value.items())
        text = f"{{{', '.join(f'{key!r}: {item}' for key, item in pairs if item is not None)}}}"
    elif isinstance(value, type):
        text = value.__name__
    elif callable(value):
        text = describe_function(value)
    elif hasattr(value, "__dict__"):  # a configuration: modules share it, one of them describes it
        if id(value) in seen:
            return None
        seen.add(id(value))
        public = {k: item for k, item in sorted(vars(value).items()) if not k.startswith("_") and k not in _AUTHORS}
        text = f"{type(value).__name__}{_setting(public, seen, min(depth, 3) - 1)}"  # not what it refers to in turn
    if text is not None and len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... [{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}]"
    return text


def _name(function: Any) -> str:
    """Name a function without its address: by where it is defined, or by its class."""
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    named = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(named)


def _collect(value: Any, parts: list[bytes], depth: int) -> None:
    """Add to ``parts`` what a function does: the bytes of its code, and of the data that it holds."""
    if depth == 0:
        parts.append(type(value).__qualname__.encode())
    elif isinstance(value, _PLAIN):
        parts.append(repr(value).encode())
    elif isinstance(value, Tensor):
        parts.append(digest_of(value).encode())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        parts += [str(value.dtype).encode(), np.array(value, order="C").tobytes()]
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)) and len(value) > _MOST:
        parts.append(str(len(value)).encode())
    elif isinstance(value, (set, frozenset)):
        _collect(sorted(value, key=repr), parts, depth)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, parts, depth - 1)
    elif isinstance(value, Mapping):
        _collect([*value.keys(), *value.values()], parts, depth)
    else:
        _collect_code(value, parts, depth)


def _collect_code(value: Any, parts: list[bytes], depth: int) -> None:
    """Do the same for what is no data."""
    if isinstance(value, types.CodeType):
        parts += [value.co_code, repr(value.co_names).encode()]
        _collect(value.co_consts, parts, depth)
    elif isinstance(value, functools.partial):
        _collect([value.func, value.args, value.keywords], parts, depth)
    elif isinstance(value, types.MethodType):
        _collect(value.__func__, parts, depth)
    elif isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        # What it calls beside it; what other modules have is known by its name.
        held += [found for name in value.__code__.co_names if _is_near(found := value.__globals__.get(name), value)]
        _collect([value.__code__, value.__defaults__, value.__kwdefaults__, *held], parts, depth)
    else:
        parts.append(_name(value).encode())
        if not isinstance(value, (type, types.ModuleType)) and isinstance(
            call := type(value).__call__, types.FunctionType
        ):
            held = [item for _, item in sorted(getattr(value, "__dict__", {}).items()) if isinstance(item, _PLAIN)]
            _collect([call, *held], parts, depth - 1)


def _is_near(value: Any, function: types.FunctionType) -> bool:
    """Say whether a global is plain data, or a function of the same module."""
    if isinstance(value, types.FunctionType):
        return value is not function and value.__globals__ is function.__globals__
    return value is not None and isinstance(value, _PLAIN)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
