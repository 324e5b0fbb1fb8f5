"""A model and a loss in words that two runs can compare: classes, settings, hooks, and the code of functions.

Only what can change a Hessian without changing a parameter, a buffer or the data has a place here. What is not plain
data (tensors that are no buffers, caches, handles) and the modes of modules show in the losses instead.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvp_engine.jobs.held_tensors import HeldTensors
from hvp_engine.problem.cuts import Cut
from hvp_engine.system.torch_private import hooks_of_module, hooks_of_tensor

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, enum.Enum, range)
_DEPTH = 6  # of settings within settings, and of functions within functions
_LONGEST = 4000  # characters of one setting; of longer ones a digest stands for the rest
_MOST = 10_000  # items of one; of more their number stands for them
_AUTHORS = {"transformers_version"}  # settings that say who wrote a configuration, not what it does
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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
    return f"{_name(function)} [{_CodeDigest(function).hexdigest()}]"


def describe_loss(loss: Callable[..., Any], *models: nn.Module) -> str:
    """Name a loss and digest what it does, with the tensors and modules that it holds, whose values decide its own.

    Args:
        loss: The loss.
        models: The model, and its working copy: what the loss holds of them is compared on its own.
    """
    held = HeldTensors(models, lambda module: _module(module, set()))
    return f"{_name(loss)} [{_CodeDigest(loss, held).hexdigest()}]"


def describe_suspect(function: type | Cut) -> str:
    """Name an autograd function and digest the code of its passes; a place that cuts graphs is its line."""
    if isinstance(function, Cut):
        return str(function)
    passes = [getattr(function, name, None) for name in ("forward", "setup_context", "backward", "vmap", "jvp")]
    return f"{function.__module__}.{function.__qualname__} [{_CodeDigest(passes).hexdigest()}]"


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
        shown = " ".join(_without_addresses(module.extra_repr()).split())
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
        text = _without_addresses(repr(value))
    elif isinstance(value, (Tensor, nn.Module, np.ndarray)) or depth == 0:
        return None
    elif isinstance(value, (list, tuple, set, frozenset, Mapping)) and len(value) > _MOST:
        text = f"{type(value).__name__} of {len(value)}"
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = [_setting(item, seen, depth - 1) or type(item).__name__ for item in value]
        text = f"{type(value).__name__}({', '.join(sorted(items) if isinstance(value, (set, frozenset)) else items)})"
    elif isinstance(value, Mapping):
        pairs = ((_without_addresses(repr(key)), _setting(item, seen, depth - 1)) for key, item in value.items())
        text = f"{{{', '.join(sorted(f'{key}: {item}' for key, item in pairs if item is not None))}}}"
    elif isinstance(value, type):
        text = value.__name__
    elif callable(value):
        text = describe_function(value)
    elif hasattr(value, "__dict__"):  # a configuration: modules share it, one of them describes it
        if id(value) in seen or isinstance(value, types.ModuleType) or _is_machinery(type(value)):
            return None
        seen.add(id(value))
        public = {k: item for k, item in sorted(vars(value).items()) if not k.startswith("_") and k not in _AUTHORS}
        text = f"{type(value).__name__}{_setting(public, seen, min(depth, 3) - 1)}"  # not what it refers to in turn
    if text is not None and len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... [{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}]"
    return text


def _without_addresses(shown: str) -> str:
    """Leave out where in memory an object lies, which its text may say: elsewhere in every process."""
    return _ADDRESS.sub("", shown)


def _is_machinery(cls: type) -> bool:
    """Say whether a class is of PyTorch or of Python itself: loggers, locks, optimisers; but for plain records."""
    package = cls.__module__.partition(".")[0]
    return package == "torch" or (package in sys.stdlib_module_names and package not in ("types", "argparse"))


def _name(function: Any) -> str:
    """Name a function without its address: by where it is defined, or by its class."""
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    named = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(named)


class _CodeDigest:
    """Digest of what a function does: the bytes of its code, and of the data that it holds."""

    def __init__(self, function: Any, held: HeldTensors | None = None) -> None:
        self._held = held  # None digests what a closure has at once alone, as of hooks, whose digests are older
        self._hasher = hashlib.blake2b(digest_size=8)
        self._seen: set[int] = set()  # functions, each of which counts once
        self._add(function, _DEPTH)

    def hexdigest(self) -> str:
        """Return it in hexadecimal digits."""
        return self._hasher.hexdigest()

    def _write(self, data: bytes) -> None:
        self._hasher.update(len(data).to_bytes(8, "little") + data)

    def _add(self, value: Any, depth: int) -> None:
        if depth == 0:
            self._write(type(value).__qualname__.encode())
        elif isinstance(value, _PLAIN):
            self._write(_without_addresses(repr(value)).encode())
        elif isinstance(value, Tensor):
            self._write(digest_of(value).encode())
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._write(str(value.dtype).encode() + np.array(value, order="C").tobytes())
        elif isinstance(value, (list, tuple, set, frozenset, Mapping)):
            self._add_items(value, depth)
        else:
            self._add_code(value, depth)

    def _add_items(self, value: Any, depth: int) -> None:
        self._write(str(len(value)).encode())
        if len(value) > _MOST:
            return
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        for item in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
            self._add(item, depth - 1)

    def _add_code(self, value: Any, depth: int) -> None:
        if isinstance(value, types.CodeType):
            self._write(value.co_code)
            self._add([value.co_names, value.co_consts], depth + 1)
        elif isinstance(value, functools.partial):
            self._add([value.func, value.args, value.keywords], depth)
        elif isinstance(value, types.MethodType):
            self._add_code(value.__func__, depth)
            self._add_held(value.__self__)
        elif isinstance(value, types.FunctionType) and id(value) not in self._seen:
            self._seen.add(id(value))
            held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            # What it calls beside it; what other modules have is known by its name.
            near = [found for name in value.__code__.co_names if _is_near(found := value.__globals__.get(name), value)]
            self._add([value.__code__, value.__defaults__, value.__kwdefaults__, *held, *near], depth)
            for found in [value.__globals__.get(name) for name in value.__code__.co_names]:
                if isinstance(found, (Tensor, np.ndarray, nn.Module)):
                    self._add_held(found)
        else:
            self._write(_name(value).encode())
            call = type(value).__call__ if callable(value) else None
            if isinstance(call, types.FunctionType) and not isinstance(value, nn.Module):
                held = [item for _, item in sorted(getattr(value, "__dict__", {}).items()) if isinstance(item, _PLAIN)]
                self._add([call, *held], depth - 1)
            self._add_held(value)

    def _add_held(self, value: Any) -> None:
        """Add tensors and modules; nothing at all where there are none, so that older digests stay what they were."""
        holder = not isinstance(value, (Tensor, np.ndarray, nn.Module))
        if self._held is None or (holder and (isinstance(value, types.ModuleType) or _is_machinery(type(value)))):
            return
        for text in self._held.of(value):
            self._write(text.encode())


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
