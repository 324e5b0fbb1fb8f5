"""A valid call of every function of the compiled extension, its numbers marked by what they mean; without PyTorch.

Every tensor has room for eight bytes an element, so that its dtype may be any, and its elements are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np


class Address(int):
    """An address that is needed."""

    alignment = 2
    optional = False


class MaybeAddress(Address):
    """An address that may be 0."""

    optional = True


class ByteAddress(Address):
    """An address of bytes, aligned wherever it is."""

    alignment = 1


class Size(int):
    """A size, a stride or a place: not negative, and small."""


class Dtype(int):
    """A number of `hvp::Dtype`, or of an activation."""


class Handle(int):
    """A device or a stream."""


_kept: list[Any] = []


def memory(elements: int) -> int:
    """Returns the address of zeros of 8 bytes each, with room on both sides."""
    array = np.zeros(elements + 32, dtype=np.float64)
    _kept.append(array)
    return array[16:].ctypes.data // 64 * 64


def at(elements: int) -> Address:
    return Address(memory(elements))


def maybe(elements: int) -> MaybeAddress:
    return MaybeAddress(memory(elements))


def numbers(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


BATCH, ROWS, COLUMNS = Size(2), Size(3), Size(5)
F32 = Dtype(0)


def groups(names: str, elements: int = 10) -> list[int]:
    """Address and stride of each input; in lower case one that may be absent."""
    return [part for name in names for part in ((at if name.isupper() else maybe)(elements), Size(elements // 2))]


def activation(inputs: str, outputs: str, *kind: int) -> list[Any]:
    return [*kind, F32, BATCH, COLUMNS, *groups(inputs), *((at if o.isupper() else maybe)(10) for o in outputs)]


def pair(elements: int, kind: Callable[[int], Address] = at) -> tuple[int, int]:
    return kind(2 * elements), Size(elements)


def normalize(*rest: Any) -> list[Any]:
    return [True, F32, F32, BATCH, ROWS, COLUMNS, *rest]


def strided(*sizes: int, kind: type[Address] = Address) -> tuple[int, list[int]]:
    strides = [Size(int(np.prod(sizes[d + 1 :]))) for d in range(len(sizes))]
    return kind(memory(int(np.prod(sizes)))), strides


def attention(*rest: Any) -> list[Any]:
    sizes = [Size(n) for n in (2, 4, 2, 3, 5, 8, 6)]  # batch, heads, key heads, queries, keys, width, value width
    mask = strided(2, 4, 3, 5, kind=ByteAddress)
    inputs = [strided(2, 4, 3, 8), strided(2, 2, 5, 8), strided(2, 2, 5, 6), mask, strided(2, 4, 3, 2)]
    return [sizes, 1.0, True, (F32, Dtype(3)), inputs, *rest]


QUERY, KEY, VALUE, OUT = (2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6), (2, 4, 3, 6)


def attention_second() -> list[Any]:
    given = [strided(*sizes) for sizes in (OUT, QUERY, KEY, VALUE)]
    return attention(given, [strided(*sizes) for sizes in (QUERY, KEY, VALUE, OUT)])


def rows() -> list[Any]:
    return [F32, at(15), at(3), maybe(5), Size(6), ROWS, COLUMNS, -100, 0.1]


def stream_table() -> np.ndarray:
    return np.array([(at(15), at(5), 5, 5, 3, 0, 0), (at(8), at(4), 4, 4, 2, 2, 1)], dtype=np.int64)


def host_stream_table() -> np.ndarray:
    """With rows of 8 bits and scales, which take more than their elements."""
    scaled = np.array([(at(60), at(4), 192, 4, 2, 4, 0)], dtype=np.int64)
    return np.concatenate([stream_table(), scaled])


def record_table() -> np.ndarray:
    return np.array([(at(5), at(5), at(5), 5, 0, 3, 0, 0), (0, 0, 0, 0, 1, 3, 0, 0)], dtype=np.int64)


def examples(native: ModuleType) -> dict[str, list[Any]]:
    """Returns the arguments of a valid call by the name of the function or class."""
    stats, per_row, all_rows = at(6), at(6), at(30)
    found: dict[str, list[Any]] = {
        "set_malloc_thresholds": [Size(1 << 20), Size(1 << 20)],
        "trim_heap": [],
        "isa": [],
        "num_threads": [],
        "read_sum": [at(10), Size(10)],
        "fingerprint": [ByteAddress(memory(10)), Size(20)],
        "activation_forward": activation("X", "Y", Dtype(0)),
        "activation_backward": activation("XG", "D", Dtype(1)),
        "activation_double_backward": activation("XGU", "gx", Dtype(2)),
        "swiglu_forward": activation("AB", "Y"),
        "swiglu_backward": activation("ABG", "ab"),
        "swiglu_double_backward": activation("ABGuv", "gab"),
        "normalize_chunks": [ROWS],
        "normalize_forward": normalize(1e-5, pair(15), pair(5), pair(5), at(30), at(12)),
        "normalize_backward": normalize(pair(15), pair(5), pair(6), pair(15), maybe(30), maybe(10), maybe(10), at(20)),
        "normalize_double_backward": normalize(
            *(pair(n) for n in (15, 5, 6, 15, 15, 5, 5)), at(30), maybe(30), maybe(10), at(20)
        ),
        "attention_forward": attention(strided(*OUT)),
        "attention_backward": attention(*(strided(*sizes) for sizes in (OUT, QUERY, KEY, VALUE))),
        "attention_second": attention_second(),
        "CrossEntropyRows": rows(),
        "softmax_forward": [F32, at(15), ROWS, COLUMNS, at(15)],
        "softmax_backward": [F32, at(15), at(30), Size(6), ROWS, COLUMNS, at(30)],
        "softmax_double_backward": [
            F32,
            at(15),
            at(30),
            at(30),
            Size(6),
            ROWS,
            COLUMNS,
            maybe(30),
            maybe(30),
        ],
        "softmax_tangent": [F32, at(21), Size(7), at(6), at(3), at(3), ROWS, COLUMNS, at(15), at(3)],
        "embedding_backward": [F32, at(4), at(4), Size(4), at(20), ROWS, COLUMNS, at(15)],
        "pair_products": [F32, at(15), at(5), ROWS, COLUMNS, Size(2), Size(9), at(21)],
        "pack_covariance": [F32, F32, at(21), at(15), ROWS, COLUMNS, Size(2), Size(9), at(45)],
        "packed_symmetric_matvec": [F32, at(45), at(30), BATCH, ROWS, COLUMNS, at(30)],
        "reorthogonalize": [host_stream_table(), 2, 1e-6, -1.0, numbers(3, 3), numbers(3), numbers(3)],
        "tridiagonal_quadrature": [
            numbers(3, 4),
            numbers(3, 3),
            np.array([4, 1, 3]),
            np.array([1, 2, 0]),
            numbers(3, 4),
            numbers(3, 4),
        ],
    }
    if hasattr(native, "CrossEntropyRows"):
        described = native.CrossEntropyRows(*rows())
        found["cross_entropy_forward"] = [described, stats, per_row]
        found["cross_entropy_backward"] = [described, stats, per_row, all_rows]
        found["cross_entropy_hvp"] = [described, stats, per_row, all_rows, maybe(30), maybe(6)]
    return found | (cuda_examples(native) if hasattr(native, "cuda_why_not") else {})


def cuda_examples(native: ModuleType) -> dict[str, list[Any]]:
    on = [Handle(0), Handle(0)]
    projection, words = native.cuda_plan_reorthogonalize(stream_table())
    record, steps = native.cuda_plan_record(record_table())
    state = [at(8), at(8), at(2), at(2), at(2), ByteAddress(memory(2))]
    arrays = [at(12), at(9), Address(kept(np.full(3, 4))), at(12), at(12), at(1), at(4 * 3 * 32)]
    return {
        "cuda_why_not": [],
        "cuda_plan_reorthogonalize": [stream_table()],
        "cuda_reorthogonalize": [
            projection,
            2,
            1e-6,
            -1.0,
            Address(kept(words)),
            at(6),
            Size(3),
            at(2),
            at(2),
            at(1000),
            *on,
        ],
        "cuda_plan_record": [record_table()],
        "cuda_record_step": [
            record,
            Address(kept(steps)),
            at(2),
            Size(1),
            at(2),
            at(2),
            Size(1),
            1e-9,
            state,
            Size(4),
            *on,
        ],
        "cuda_tridiagonal_workspace_bytes": [Size(3), Size(4)],
        "cuda_tridiagonal_quadrature": [Size(3), Size(4), arrays, *on],
        "ProjectionPlan": [],
        "RecordPlan": [],
    }


def kept(array: np.ndarray) -> int:
    """Returns the address of an array that stays."""
    _kept.append(array)
    return array.ctypes.data
