"""Where a model's state is: its modules' attributes, the containers among them, and the tensors in those."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size))
_OPAQUE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, torch.Generator)
_DEPTH = 3  # a module's attribute, the object there, its attribute
_LONG = 10_000  # items: a container of more is data, not state
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


class Container(NamedTuple):
    """A dictionary, list or deque, and what it held.

    Attributes:
        target: The container.
        content: A copy of it.
        ids: Its values by their numbers: quicker to compare.
        holds: Whether clones may stand in for some of the values.
    """

    target: Any
    content: Any
    ids: list[int]
    holds: bool

    @property
    def same(self) -> bool:
        """Whether it holds the same objects."""
        values = self.target.values() if isinstance(self.content, dict) else self.target
        return list(map(id, values)) == self.ids

    def restore(self, standing_in: Mapping[int, Tensor]) -> bool:
        """Put back what it held, with clones where there are any; return whether it held something else."""
        if not self.holds and self.same:
            return False
        if isinstance(self.content, dict):
            wanted: Any = {key: standing_in.get(id(value), value) for key, value in self.content.items()}
            if list(map(id, self.target.values())) == list(map(id, wanted.values())):
                return False
            self.target.update(wanted)
            for key in [key for key in self.target if key not in wanted]:
                del self.target[key]
            return True
        wanted = [standing_in.get(id(item), item) for item in self.content]
        if list(map(id, self.target)) == list(map(id, wanted)):
            return False
        self.target.clear()
        self.target.extend(wanted)
        return True


class StateWalk:
    """A model's state when it was walked through.

    Attributes:
        containers: All that hold something.
        empty: All that held nothing.
        sets: Sets, and what was in them.
        hooks: Backward hooks of modules: dictionaries, and what was in them.
        tensors: Buffers and tensors among the attributes, by their numbers.
        names: Their names.
        slots: Where each tensor is: (container, key).
        parameters: The parameters.
        graphed: Tensors among the attributes that require gradients, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        """Walk through a model; nothing is changed."""
        self.containers: list[Container] = []
        self.empty: list[Any] = []
        self.sets: list[tuple[set[Any], set[Any]]] = []
        self.hooks: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.tensors: dict[int, Tensor] = {}
        self.names: dict[int, str] = {}
        self.slots: dict[int, list[tuple[Any, Any]]] = {}
        self.parameters = list(model.parameters())
        self.graphed: dict[str, Tensor] = {}
        self._seen: set[int] = set()
        self._visit_modules(model, "")

    @property
    def current(self) -> bool:
        """Whether everything is where it was."""
        return (
            not any(self.empty)
            and all(container.same for container in self.containers)
            and all(members == before for members, before in self.sets)
            and all(mapping == content for mapping, content in self.hooks)
        )

    def restore(self, standing_in: Mapping[int, Tensor]) -> bool:
        """Put everything back where it was, with clones in the place of tensors; return whether anything was not."""
        found = False
        if any(self.empty):
            found = True
            for container in self.empty:
                container.clear()
        for container in self.containers:
            found |= container.restore(standing_in)
        for members, before in self.sets:
            if members != before:
                found = True
                members.clear()
                members.update(before)
        return found

    def _visit_modules(self, root: nn.Module, prefix: str) -> None:
        for name, module in root.named_modules(prefix=prefix):
            if id(module) not in self._seen:
                self._seen.add(id(module))
                self._visit_module(module, f"{name}." if name else "")

    def _visit_module(self, module: nn.Module, prefix: str) -> None:
        attributes = vars(module)
        tensors = len(self.slots)
        for key, value in attributes.items():
            kind = type(value)
            if kind in _ATOMS:
                continue
            if key in _BACKWARD_HOOKS:
                self.hooks += [(value, dict(value))] if value else []
            elif (kind is dict or kind is OrderedDict) and not value:  # most attributes of most modules: other hooks
                self.empty.append(value)
            elif key in ("_parameters", "_modules"):
                if isinstance(value, dict):  # not of a scripted module
                    self._take(value, dict(value), holds=False)
            elif key == "_buffers":
                self._visit_items(value, prefix, _DEPTH)
            else:
                self._visit(attributes, key, value, f"{prefix}{key}", _DEPTH)
        self._take(attributes, dict(attributes), holds=len(self.slots) > tensors)

    def _take(self, target: Any, content: Any, *, holds: bool) -> None:
        values = content.values() if isinstance(content, dict) else content
        if content:
            self.containers.append(Container(target, content, list(map(id, values)), holds))
        else:
            self.empty.append(target)

    def _visit(self, container: Any, place: Any, value: Any, name: str, depth: int) -> None:
        """Take what is at one place."""
        if isinstance(value, Tensor):
            if value.requires_grad and not isinstance(value, nn.Parameter):
                self.graphed[name] = value
            elif not isinstance(value, nn.Parameter):
                self.tensors[id(value)] = value
                self.names[id(value)] = name
                self.slots.setdefault(id(value), []).append((container, place))
            return
        if depth == 0 or id(value) in self._seen or isinstance(value, _OPAQUE):
            return
        if isinstance(value, (dict, list, deque, set)):
            self._seen.add(id(value))
            if len(value) <= _LONG:
                self._visit_container(value, name, depth)
        elif isinstance(value, nn.Module):
            self._visit_modules(value, name)
        elif isinstance(getattr(value, "__dict__", None), dict):
            self._seen.add(id(value))
            self._visit_items(vars(value), f"{name}.", depth)

    def _visit_container(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, dict):
            self._visit_items(value, f"{name}.", depth)
        elif isinstance(value, set):
            self.sets.append((value, set(value)))
        else:
            tensors = any(isinstance(item, Tensor) for item in value)
            self._take(value, list(value), holds=tensors)
            for index, item in enumerate(value):
                if type(item) not in _ATOMS:
                    self._visit(value, index, item, f"{name}.{index}", depth - 1)

    def _visit_items(self, mapping: Any, prefix: str, depth: int) -> None:
        tensors = False
        for key, value in list(mapping.items()):
            if type(value) not in _ATOMS:
                tensors |= isinstance(value, Tensor)
                self._visit(mapping, key, value, f"{prefix}{key}", depth - 1)
        if isinstance(mapping, dict):
            self._take(mapping, dict(mapping), holds=tensors)
