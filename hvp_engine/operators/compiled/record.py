"""Recording a pass: every call that depends on the vector, below autograd and batching, kernels of ours included.

What depends on the primal alone is computed in the recording and kept where a recorded call reads it: the loop never
computes it again. Dependence is told by memory, not by tensor: what shares the memory of a tensor that varies, varies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hvp_engine.kernels.effects import WRITTEN
from hvp_engine.operators.compiled.tape import Call, Content, Fixed, Memory, Tape, View, leaves_of, replaced
from hvp_engine.system.torch_private import (
    LightDispatchMode,
    is_zero_tensor,
    schema_of,
    storage_key,
    weak_storage,
    write_count,
)

__all__ = ["Recorder"]

_aten = torch.ops.aten
_EMPTY = frozenset(("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"))
_ZEROS = frozenset(("zeros", "zeros_like", "new_zeros"))
# What reads of a tensor no more than its shape and kind.
_SHAPED = _EMPTY | _ZEROS | frozenset(("ones_like", "full_like", "new_ones", "new_full"))
_MOVING = frozenset(("resize_", "resize_as_", "set_"))  # give a tensor other memory
_PICKING = frozenset(("index", "masked_select"))  # as many numbers as their second argument says


class Recorder(LightDispatchMode):
    """Records a pass that adds the product with a vector to a tensor of zeros.

    Attributes:
        obstacle: Why the pass cannot be recorded, a clause; None while it can. It goes on all the same.
    """

    def __init__(self, vector: Tensor, out: Tensor) -> None:
        """Begin.

        Args:
            vector: What the pass is linear in; memory of its own.
            out: What the product is added to; memory of its own, zeros.
        """
        super().__init__()
        self.obstacle: str | None = None
        self._like = out
        self._calls: list[Call] = []
        self._memories: dict[Hashable, Memory] = {}
        self._names: list[object] = []  # keep the keys of storages from being given away, not what is in them
        self._watched: dict[Memory, tuple[Tensor, int]] = {}
        self._inside = False
        self._vector, self._out = (self._made(tensor, Memory(_bytes(tensor), True)) for tensor in (vector, out))

    def tape(self) -> Tape:
        """Return what was recorded."""
        watched = list(self._watched.values())
        return Tape(self._calls, self._vector, self._out, self._like.dtype, self._like.device, watched)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record it where it depends on the vector."""
        kwargs = kwargs or {}
        if self._inside or self.obstacle is not None:
            return func(*args, **kwargs)
        shaped = func.overloadpacket.__name__ in _SHAPED
        given = [] if shaped else [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        if not self._look(func, args, given) or torch.Tag.inplace_view in func.tags:  # those change no numbers
            return func(*args, **kwargs)
        written = _written_arguments(func, args, kwargs)
        arguments = self._prepared(given, written, (args, kwargs))
        result = func(*args, **kwargs)
        self._take(func, arguments, given, written, result)
        return result

    def kernel_called(self, family: str, name: str, kernel: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Run a kernel of ours, and record it where it depends on the vector."""
        effects = WRITTEN.get((family, name))
        if self.obstacle is None and effects is None:
            self.obstacle = f"the kernel {name} is not known to recordings"
        if self.obstacle is not None or effects is None:
            kernel(*args)
            return
        self._inside = True  # what a backend does with tensors is a part of the kernel
        try:
            given = [leaf for leaf in leaves_of(args) if isinstance(leaf, Tensor)]
            written = [tensor for tensor in effects(*args) if tensor is not None]
            arguments = self._prepared(given, written, (args, {}))
            kernel(*args)
        finally:
            self._inside = False
        if arguments is not None:
            self._calls.append(Call(kernel, *arguments, written=self._views(written)))

    def _look(self, func: Any, args: tuple[Any, ...], given: list[Tensor]) -> bool:
        """Note what cannot be recorded; return whether the call can."""
        name = func.overloadpacket.__name__
        odd = next((why for why in map(_oddity, given) if why is not None), None)
        if odd is not None:
            self.obstacle = f"{name} gets {odd}"
        elif schema_of(func) is None:
            self.obstacle = f"{name} does not declare what it writes"
        elif torch.Tag.nondeterministic_seeded in func.tags:
            self.obstacle = f"{name} draws random numbers"
        elif any(map(self._varies, given)):
            if name in _MOVING:
                self.obstacle = f"{name} moves a tensor"
            elif torch.Tag.dynamic_output_shape in func.tags and (
                name not in _PICKING or any(self._varies(t) for t in leaves_of(args[1]) if isinstance(t, Tensor))
            ):
                self.obstacle = f"the shape of what {name} gives depends on the vector"
        return self.obstacle is None

    def _prepared(
        self, given: list[Tensor], written: list[Tensor], arguments: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Make room for what a call writes; return its arguments as a tape has them, None for a constant call."""
        varies = any(map(self._varies, given))
        for tensor in written:
            self._before_write(tensor, varies=varies)
        if not varies:
            for tensor in given:
                self._memory(tensor)  # to be watched
            return None
        changed: tuple[tuple[Any, ...], dict[str, Any]] = replaced(arguments, self._described)
        return changed

    def _described(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        memory = self._memory(value)
        if memory.varies:
            return View.of(memory, value)
        fixed = Fixed(memory, value)
        memory.readers.append(fixed)
        return fixed

    def _take(
        self,
        func: Any,
        arguments: tuple[tuple[Any, ...], dict[str, Any]] | None,
        given: list[Tensor],
        written: list[Tensor],
        result: Any,
    ) -> None:
        """Take note of what an operation returned."""
        results = result if isinstance(result, (tuple, list)) else (result,)
        tensors = [leaf for leaf in leaves_of(results) if isinstance(leaf, Tensor)]
        known = {storage_key(tensor.untyped_storage()) for tensor in given} if tensors else set()
        fresh = [tensor for tensor in tensors if storage_key(tensor.untyped_storage()) not in known]
        if tensors and not fresh and not written:
            return  # views
        name = func.overloadpacket.__name__
        odd = next((why for why in map(_oddity, fresh) if why is not None), None)
        if odd is not None:
            self.obstacle = f"{name} gives {odd}"
        elif arguments is None:
            content: Content = "nothing" if name in _EMPTY else "zeros" if name in _ZEROS else "numbers"
            for tensor in fresh:
                self._made(tensor, Memory(_bytes(tensor), False, content))
            if name == "zero_" and len(written) == 1 and _bytes(written[0]) == written[0].nbytes:
                self._memory(written[0]).content = "zeros"
        elif len(tensors) != len([leaf for leaf in leaves_of(results) if leaf is not None]):
            self.obstacle = f"what follows {name} depends on the vector's values"
        elif 0 < len(fresh) < len(tensors) or (fresh and (written or any(isinstance(r, list) for r in results))):
            self.obstacle = f"{name} gives both new tensors and old ones"
        else:
            made = tuple(
                None if r is None else View.of(self._made(r, Memory(_bytes(r), True)), r) for r in results if fresh
            )
            self._calls.append(Call(func, *arguments, made, self._views(written)))

    def _varies(self, tensor: Tensor) -> bool:
        memory = self._memories.get(storage_key(tensor.untyped_storage()))
        return memory is not None and memory.varies

    def _memory(self, tensor: Tensor) -> Memory:
        """Return the memory of a tensor; one that is met for the first time was there before the pass."""
        memory = self._memories.get(storage_key(tensor.untyped_storage()))
        if memory is None:
            memory = self._made(tensor, Memory(_bytes(tensor), False, was_there=True))
            self._watched[memory] = tensor, write_count(tensor)
        return memory

    def _made(self, tensor: Tensor, memory: Memory) -> Memory:
        storage = tensor.untyped_storage()
        self._names.append(weak_storage(storage))
        self._memories[storage_key(storage)] = memory
        return memory

    def _views(self, tensors: Sequence[Tensor]) -> tuple[View, ...]:
        return tuple(View.of(self._memory(tensor), tensor) for tensor in tensors)

    def _before_write(self, tensor: Tensor, *, varies: bool) -> None:
        """Keep what a constant was for those who read it, and put it into the loop where it becomes a variable."""
        memory = self._memory(tensor)
        if memory.varies or self.obstacle is not None:
            return
        if memory.was_there:
            self.obstacle = "it writes to a tensor that was there before"
            return
        whole = torch.as_strided(tensor, (memory.bytes // tensor.itemsize,), (1,), 0)
        if memory.readers:
            content = whole.clone()
            for reader in memory.readers:
                old = reader.tensor
                kept = content.view(torch.uint8).view(old.dtype)
                reader.tensor = torch.as_strided(kept, old.shape, old.stride(), old.storage_offset())
            memory = self._made(tensor, Memory(memory.bytes, False, memory.content))
        if varies:
            content_now, memory = memory.content, self._made(tensor, Memory(memory.bytes, True))
            target = View.of(memory, whole)
            if content_now == "zeros":
                self._calls.append(Call(_aten.zero_.default, (target,), {}, written=(target,)))
            elif content_now == "numbers":
                constant = whole.clone()
                fixed = Fixed(Memory(memory.bytes, False), constant)
                self._calls.append(Call(_aten.copy_.default, (target, fixed), {}, written=(target,)))
        elif memory.content != "numbers":
            memory.content = "numbers"


def _bytes(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _oddity(tensor: Tensor) -> str | None:
    """Say what is odd about a tensor that is not simply numbers in memory."""
    if type(tensor) not in (Tensor, Parameter):
        return f"a tensor of type {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout}"
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or is_zero_tensor(tensor):
        return "a tensor whose numbers are not those in memory"
    return None


def _written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation writes to, by its schema."""
    written: list[Tensor] = []
    for number, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            written += [leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor)]
    return written
