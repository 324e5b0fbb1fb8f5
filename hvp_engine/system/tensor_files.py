"""Files of tensors in the safetensors format, written and read in one pass and checked before anything is allocated.

The library of that name writes to a temporary file of its own, which a killed process leaves behind under a name that
nobody can tell from a stranger's, and maps files into memory, where a file that shrinks meanwhile ends the process.
The format itself (https://github.com/huggingface/safetensors#format) is 8 bytes with the length of a JSON header, the
header, and the tensors' bytes without a gap.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import RunFolderError
from hvp_engine.system.files import Chunks, open_to_read, write_atomic
from hvp_engine.system.json_files import canonical, damaged, parse
from hvp_engine.system.memory import budget
from hvp_engine.system.phases import phase

Tensors = Mapping[str, Tensor | NDArray[Any]]
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_NOTE = "format"  # the only key of the metadata
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the format
_WHOLE = "it is not a whole safetensors file"


class TensorFile(NamedTuple):
    """What :func:`read_tensors` found.

    Attributes:
        tensors: By name, on the CPU.
        note: What the writer said about them.
        sha256: Of all bytes of the file, in hexadecimal digits.
    """

    tensors: dict[str, Tensor]
    note: str
    sha256: str


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: list[int]
    end: int


def tensor_chunks(tensors: Tensors, note: str) -> Chunks:
    """Return the bytes of a file with tensors; the same tensors and note give the same bytes.

    Args:
        tensors: Dense tensors on any device, or numpy arrays.
        note: One line about them, kept in the header.
    """
    found = {name: _dense(value) for name, value in tensors.items()}
    found = dict(sorted(found.items(), key=lambda item: (-item[1].itemsize, item[0])))  # keeps every one aligned
    header: dict[str, Any] = {_METADATA: {_NOTE: note}}
    end = 0
    for name, tensor in found.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = canonical(header)
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(_bytes(tensor) for tensor in found.values())]


def write_tensors(path: Path, tensors: Tensors, key: str) -> None:
    """Write tensors with a checksum of names, dtypes, shapes and values; a failure leaves the earlier file as it was.

    Args:
        path: The file.
        tensors: Dense tensors on any device, or numpy arrays.
        key: What the file must be read for: the checksum does not fit another one.

    Raises:
        RunFolderError: If the file cannot be written.
    """
    with phase(f"writing {path.name}"):
        plain = {name: _dense(value) for name, value in tensors.items()}
        write_atomic({path: tensor_chunks(plain, _checksum(plain, key))})


def read_sealed_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """Read what :func:`write_tensors` wrote with the same key.

    Raises:
        RunFolderError: If it is missing, unreadable, or not what was written for this key.
    """
    tensors, note, _ = read_tensors(path)
    if note != _checksum(tensors, key):
        raise damaged(path, "its checksum does not fit its content or its job")
    return tensors


def read_tensors(path: Path, layout: Layout | None = None) -> TensorFile:
    """Read a safetensors file of anyone.

    Args:
        path: The file.
        layout: Dtype and shape of every tensor that it must have, compared before any is read; None takes any.

    Raises:
        RunFolderError: If it is missing, unreadable, not a whole safetensors file, not of that layout, or larger than
            the memory.
    """
    tensors: dict[str, Tensor] = {}
    with open_to_read(path) as (file, size), phase(f"reading {path.name}") as now:
        start, entries, note = _header(path, file, size)
        if layout is not None and {entry.name: (entry.dtype, tuple(entry.shape)) for entry in entries} != layout:
            raise damaged(path, "its tensors do not have the names and shapes that they should have")
        if size > (free := budget(torch.device("cpu"))):
            raise RunFolderError(
                f"{path} has {size} bytes, more than the memory that is free ({free}); check where it comes from, or "
                "read it on a larger machine."
            )
        hasher = hashlib.sha256(start)
        for entry in entries:
            tensor = tensors[entry.name] = _allocate(path, entry)
            data = _bytes(tensor)
            _fill(path, file, data)
            hasher.update(data)
            now.reach(entry.end / size)
            if entry.dtype == torch.bool and data.nbytes and np.frombuffer(data, np.uint8).max() > 1:
                raise damaged(path, "a truth value in it is neither true nor false")
    return TensorFile(tensors, note, hasher.hexdigest())


def read_note(path: Path) -> str:
    """Return what the writer of a safetensors file said about it; an empty string where it said nothing.

    Raises:
        RunFolderError: If it is missing, unreadable, or not a whole safetensors file.
    """
    with open_to_read(path) as (file, size):
        return _header(path, file, size)[2]


def _header(path: Path, file: BinaryIO, size: int) -> tuple[bytes, list[_Entry], str]:
    """Read the start of a file of ``size`` bytes: as it stands, its tensors in the order of the file, and its note."""
    start = _read(path, file, 8) if size >= 8 else b""
    length = int.from_bytes(start, "little")
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise damaged(path, _WHOLE)
    text = _read(path, file, length)
    try:
        return start + text, *_entries(parse(text), size - 8 - length)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise damaged(path, f"{_WHOLE} ({ascii(str(error))[1:-1]})") from error


def _entries(header: Any, size: int) -> tuple[list[_Entry], str]:
    """Check a header against the ``size`` bytes that follow it; return its tensors in the order of the file.

    Raises:
        ValueError: It is wrong.
    """
    if not isinstance(header, dict):
        raise ValueError("The header is not an object.")
    metadata = header.pop(_METADATA, {})
    note = metadata.get(_NOTE, "") if isinstance(metadata, dict) else None
    if not isinstance(note, str):
        raise ValueError("The metadata are not strings.")
    found: list[tuple[int, _Entry]] = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
                code in _DTYPES and all(type(extent) is int and 0 <= extent < 1 << 40 for extent in shape)
            ):
                dtype = _DTYPES[code]
                if math.prod(shape) * dtype.itemsize != end - begin:
                    raise ValueError(f"The shape of {name!r} does not fit its bytes.")
                found.append((begin, _Entry(name, dtype, shape, end)))
            case _:
                raise ValueError(f"The entry of {name!r} is not one.")
    reached = 0
    found.sort(key=lambda pair: (pair[0], pair[1].end))
    for begin, entry in found:
        if begin != reached:
            raise ValueError(f"There is a gap or an overlap before {entry.name!r}.")
        reached = entry.end
    if reached != size:
        raise ValueError(f"The tensors have {reached} bytes, the file has {size}.")
    return [entry for _, entry in found], note


def _allocate(path: Path, entry: _Entry) -> Tensor:
    try:
        return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    except (RuntimeError, TypeError, MemoryError) as error:
        raise damaged(path, f"no tensor has the shape of {entry.name!r}, or the memory is too small") from error


def _read(path: Path, file: BinaryIO, count: int) -> bytes:
    data = bytearray(count)
    _fill(path, file, memoryview(data))
    return bytes(data)


def _fill(path: Path, file: BinaryIO, data: memoryview) -> None:
    done = 0
    while done < data.nbytes:
        count = file.readinto(data[done:])  # type: ignore[attr-defined]  # of every file opened without a buffer
        if not count:
            raise damaged(path, "it became shorter while it was read")
        done += count


def _checksum(tensors: Mapping[str, Tensor], key: str) -> str:
    """Hash names, dtypes, shapes and values, and what they are for: 32 hexadecimal digits."""
    entries = {name: [_CODES[tensor.dtype], list(tensor.shape)] for name, tensor in tensors.items()}
    hasher = hashlib.blake2b(canonical([key, entries]), digest_size=16)
    for name in sorted(tensors):
        hasher.update(_bytes(tensors[name]))
    return hasher.hexdigest()


def _dense(value: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()
    return torch.from_numpy(np.array(value, order="C"))


def _bytes(tensor: Tensor) -> memoryview:
    """Look at the bytes of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # has a buffer
