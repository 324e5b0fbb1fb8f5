"""What a recorded pass is made of: pieces of memory, views of them, and calls that read and write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Size, Tensor, device, dtype

Content = Literal["nothing", "zeros", "numbers"]


@dataclass(eq=False)
class Memory:
    """One storage that a pass uses.

    Attributes:
        bytes: Its size.
        varies: Whether its content depends on the vector; else it is that of the recording, and is kept.
        content: What a constant one holds.
        was_there: Whether it is older than the pass, which then must not write to it.
        readers: Where recorded calls read a constant one.
    """

    bytes: int
    varies: bool
    content: Content = "numbers"
    was_there: bool = False
    readers: list[Fixed] = field(default_factory=list)


@dataclass(eq=False)
class Fixed:
    """A constant among the arguments of a call.

    Attributes:
        memory: Where it lies.
        tensor: The constant.
    """

    memory: Memory
    tensor: Tensor


@dataclass(frozen=True)
class View:
    """A tensor whose content depends on the vector.

    Attributes:
        memory: Where it lies.
        dtype: Its type.
        shape: Its shape.
        stride: Its strides, in elements.
        offset: Its first element.
    """

    memory: Memory
    dtype: dtype
    shape: Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, memory: Memory, tensor: Tensor) -> View:
        """Describe a tensor that lies in some memory."""
        return cls(memory, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    @property
    def is_dense(self) -> bool:
        """Whether elements follow each other in the order of the dimensions."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def covers_memory(self) -> bool:
        """Whether it is all that is in its memory, each number once, in any order of dimensions."""
        dimensions = sorted(zip(self.stride, self.shape, strict=True), reverse=True)
        sorted_view = replace(self, shape=Size(n for _, n in dimensions), stride=tuple(n for n, _ in dimensions))
        whole = self.shape.numel() * self.dtype.itemsize == self.memory.bytes
        return whole and self.offset == 0 and sorted_view.is_dense

    @property
    def transposed(self) -> View:
        """The same with the last two dimensions exchanged."""
        *leading, first, second = range(len(self.shape))
        order = (*leading, second, first)
        return replace(self, shape=Size(self.shape[d] for d in order), stride=tuple(self.stride[d] for d in order))


@dataclass(eq=False)
class Call:
    """One call of a pass.

    Attributes:
        function: An operation of PyTorch's, or a kernel of ours.
        args: Positional arguments, with :class:`View` and :class:`Fixed` in the places of tensors.
        kwargs: Keyword arguments, likewise.
        results: What it returns, where it makes new tensors: views, and None for those that are not there.
        written: Those among the arguments that it writes to.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[View | None, ...] = ()
    written: tuple[View, ...] = ()

    @property
    def operands(self) -> list[View]:
        """What it is given that depends on the vector, to be read or written."""
        return [leaf for leaf in leaves_of((self.args, self.kwargs)) if isinstance(leaf, View)]

    @property
    def outputs(self) -> list[View]:
        """What it writes."""
        return [*self.written, *(result for result in self.results if result is not None)]


@dataclass(frozen=True)
class Tape:
    """A recorded pass.

    Attributes:
        calls: What depends on the vector, in order.
        vector: Where the vector lies.
        out: Where the product lies, zero before.
        dtype: Type of both.
        device: Where everything is.
        watched: Tensors that are older than the pass and were read, and how often they had been written to.
    """

    calls: list[Call]
    vector: Memory
    out: Memory
    dtype: dtype
    device: device
    watched: list[tuple[Tensor, int]]


def leaves_of(value: Any) -> Iterator[Any]:
    """Yield what lies in tuples, lists, dictionaries and records, however deep."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves_of(item)
    elif _is_record(value):
        for entry in dataclasses.fields(value):
            yield from leaves_of(getattr(value, entry.name))
    else:
        yield value


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return tuples, lists, dictionaries and records with every leaf replaced by what ``change`` makes of it."""
    if isinstance(value, tuple):
        items = [replaced(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [replaced(item, change) for item in value]
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    if _is_record(value):
        entries = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: replaced(item, change) for name, item in entries.items()})
    return change(value)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, View, Fixed, Memory))
