"""The state of a caller's model: kept apart while the engine computes, and back in its place afterwards.

A forward pass may write to buffers (counters, running statistics, the vectors of spectral norm), to attributes (caches,
lists, cursors) and to gradients. While the engine computes, the model holds clones of its buffers and of the tensors
among its attributes, every evaluation begins with new ones, and everything else is put back after every evaluation. So
the caller's tensors are never written to, every evaluation is the same function, and a graph keeps the clones that it
needs. Activation checkpointing evaluates again in backward passes, so those begin with the same state too. Backward
hooks of modules are out of the way: their business is training.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from hvp_engine.errors import ObjectiveError
from hvp_engine.problem.state_walk import StateWalk
from hvp_engine.system.layouts import kind_of
from hvp_engine.system.torch_private import without_torch_functions, write_count

_LARGE = 1 << 26  # bytes cloned of any model; beyond that, a quarter of what the parameters take

_active = threading.local()  # .states: what this thread holds, the innermost last
_lock = threading.Lock()
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def turn(model: nn.Module) -> AbstractContextManager[object]:
    """Return the lock of all who evaluate a model or look at it: meanwhile another thread would see clones in it."""
    if not isinstance(model, nn.Module):  # to be refused
        return contextlib.nullcontext()
    with _lock:
        return _locks.setdefault(model, threading.RLock())


def renew_active() -> None:
    """Begin a backward pass with the caller's state, where evaluations were found to change it."""
    states = getattr(_active, "states", ())
    if states:
        states[-1].renew()


class ModelState:
    """Keeps the state of one model.

    Attributes:
        model: The model.
    """

    def __init__(self, model: nn.Module, walk: StateWalk | None = None) -> None:
        """Take the model, as it is whenever it is held.

        Args:
            model: The model.
            walk: A walk through it, where there has been one.
        """
        self.model = model
        self._written: set[int] = set()  # large tensors that an evaluation wrote to
        self._pure = True  # so far no evaluation changed anything
        self._looked = False
        self._depth = 0
        self._walk = walk
        self._clones: _Clones | None = None
        self._turn = turn(model)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model's state apart inside; one thread at a time for one model."""
        with self._turn:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            if self._walk is None or not self._walk.current:
                self._walk = StateWalk(self.model)
            clones = _Clones(self._walk, self._written)
            try:
                self._depth, self._clones = 1, clones
                _active.states = (*getattr(_active, "states", ()), self)
                clones.put_in()
                yield
            finally:
                try:
                    clones.put_back()
                except BaseException:  # Ctrl-C: from the beginning
                    clones.put_back()
                    raise
                finally:
                    self._depth, self._clones = 0, None
                    _active.states = tuple(state for state in getattr(_active, "states", ()) if state is not self)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Begin with the caller's state inside, whatever is written there; call inside :meth:`held`."""
        clones = self._clones
        if clones is None:
            yield
            return
        self.renew()
        try:
            yield
            if clones.changed(thoroughly=not self._looked):
                self._pure = False
            self._looked = True
        finally:
            clones.renew()

    def renew(self) -> None:
        """Put the caller's state in place, if evaluations are known to change it."""
        if not self._pure and self._clones is not None:
            self._clones.renew()

    @contextlib.contextmanager
    def with_hooks(self) -> Iterator[None]:
        """Let backward hooks of modules run inside; call inside :meth:`held`."""
        assert self._clones is not None
        try:
            self._clones.put_hooks_back()
            yield
        finally:
            self._clones.renew()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters; inside :meth:`held`."""
        return [] if self._walk is None else self._walk.parameters

    @property
    def hooked(self) -> bool:
        """Whether a module has backward hooks; inside :meth:`held`."""
        return self._walk is not None and bool(self._walk.hooks)


class _Clones:
    """The clones that stand in for a model's tensors, and what else is put back."""

    def __init__(self, walk: StateWalk, written: set[int]) -> None:
        self._walk, self._written = walk, written
        room = max(_LARGE, sum(_size(p) for p in walk.parameters) // 4)
        self._versions: dict[int, int] = {}  # of large tensors that stay in place
        self._cloned: list[int] = []
        for key, tensor in sorted(walk.tensors.items(), key=lambda pair: _size(pair[1])):
            room -= _size(tensor)
            if room >= 0 or key in written:
                self._cloned.append(key)
            else:
                self._versions[key] = write_count(tensor)
        self._standing_in: dict[int, Tensor] = {}
        self._gradients = [(p, p.grad) for p in walk.parameters if p.grad is not None]
        self._flags = [p.requires_grad for p in walk.parameters]

    def put_in(self) -> None:
        """Let clones stand in for the tensors, and no gradients and backward hooks."""
        for parameter, _ in self._gradients:
            parameter.grad = None
        for key in self._cloned:
            self._stand_in(key)
        self._drop_hooks()

    def renew(self) -> None:
        """Put everything but large tensors that were not written to into the state that was taken."""
        self._restore(self._standing_in)
        for key, clone in list(self._standing_in.items()):
            if key in self._written or write_count(clone) != 0:
                self._stand_in(key)
        self._drop_hooks()

    def put_back(self) -> None:
        """Put back what was there."""
        self._restore({})
        for key in self._cloned:
            for container, place in self._walk.slots[key]:
                if container[place] is not self._walk.tensors[key]:  # a scripted module's buffer
                    container[place] = self._walk.tensors[key]
        self.put_hooks_back()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def put_hooks_back(self) -> None:
        """Put back the backward hooks of modules."""
        for mapping, content in self._walk.hooks:
            mapping.update(content)

    def changed(self, *, thoroughly: bool) -> bool:
        """Say whether the last evaluation changed anything, and note which tensors it wrote to.

        Args:
            thoroughly: Read the tensors, since not every write is counted.

        Raises:
            ObjectiveError: It wrote to one that is too large to be cloned.
        """
        tensors = self._walk.tensors
        for key, clone in self._standing_in.items():
            if key not in self._written and (
                write_count(clone) != 0 or (thoroughly and not _same_content(clone, tensors[key]))
            ):
                self._written.add(key)
        for key, version in self._versions.items():
            if write_count(tensors[key]) != version:
                raise ObjectiveError(
                    f"The model writes to {self._walk.names[key]!r} ({_size(tensors[key]) >> 20} MiB) in every "
                    "evaluation; it is too large to be kept apart. Call model.eval(), or make what it writes no part "
                    "of the model."
                )
        return self._restore(self._standing_in) or bool(self._written)

    def _stand_in(self, key: int) -> None:
        self._standing_in[key] = clone = self._walk.tensors[key].detach().clone()
        for container, place in self._walk.slots[key]:
            container[place] = clone

    def _drop_hooks(self) -> None:
        for mapping, _ in self._walk.hooks:
            mapping.clear()

    def _restore(self, standing_in: Mapping[int, Tensor]) -> bool:
        """Put everything but gradients and hooks back, with some clones in place; return whether anything was not."""
        with without_torch_functions():
            found = self._walk.restore(standing_in)
            for parameter, flag in zip(self._walk.parameters, self._flags, strict=True):
                if parameter.requires_grad is not flag:
                    parameter.requires_grad_(flag)
                if parameter.grad is not None:
                    parameter.grad = None
        return found


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor; sparse and nested ones, which do not tell, count as small."""
    return tensor.nbytes if kind_of(tensor) is None else 0


def _same_content(a: Tensor, b: Tensor) -> bool:
    try:
        return torch.equal(a, b)
    except RuntimeError:  # a layout without comparison
        return False
