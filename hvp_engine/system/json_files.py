"""JSON files that notice every change: strict, of bounded size and depth, with a checksum of their own content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.system.files import Chunks, read_whole, write_atomic

CHECKSUM = "checksum"

_LARGEST = 256 << 20  # bytes; a manifest of 100,000 blocks has about 50 MB
_DEEPEST = 100
# Python's parser raises these for what is not JSON, too deep, or too large for it.
_UNUSABLE = (ValueError, RecursionError, MemoryError, OverflowError)


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as JSON will give it back (lists for tuples, strings for keys), with a checksum of itself.

    Raises:
        ConfigurationError: If it has something that JSON does not, a nan included.
    """
    try:
        plain = parse(canonical(dict(document)))
    except (TypeError, *_UNUSABLE) as error:
        raise ConfigurationError(
            f"The manifest cannot be written as JSON ({error}); use strings, finite numbers, lists and dictionaries."
        ) from error
    assert isinstance(plain, dict)
    plain.pop(CHECKSUM, None)
    return {**plain, CHECKSUM: checksum(plain)}


def json_chunks(document: Mapping[str, Any]) -> Chunks:
    """Return the bytes of a file with a sealed document: indented, keys sorted.

    Raises:
        ConfigurationError: If it has something that JSON does not, a nan included.
    """
    return [(json.dumps(sealed(document), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document with its checksum; a failure leaves the earlier file as it was.

    Raises:
        ConfigurationError: If it has something that JSON does not, a nan included.
        RunFolderError: If the file cannot be written.
    """
    write_atomic({path: json_chunks(document)})


def read_json(path: Path) -> dict[str, Any]:
    """Read a document that :func:`write_json` wrote, without its checksum.

    Raises:
        RunFolderError: If it is missing, unreadable, no JSON object, or not what was written.
    """
    document = read_unsealed(path)
    if not verify(path, document):
        raise damaged(path, "it has no checksum")
    return document


def read_unsealed(path: Path) -> dict[str, Any]:
    """Read a JSON object of a stranger, its checksum not yet compared.

    Raises:
        RunFolderError: If it is missing, unreadable or no JSON object.
    """
    data = read_whole(path, _LARGEST)
    try:
        document = parse(data)
    except _UNUSABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise damaged(path, f"it is not JSON that hvp_engine writes ({ascii(reason)[1:-1]})") from error
    if not isinstance(document, dict):
        raise damaged(path, "it is not a JSON object")
    return document


def verify(path: Path, document: dict[str, Any]) -> bool:
    """Take the checksum out of a document; say whether it had one.

    Raises:
        RunFolderError: It has one that does not fit.
    """
    if CHECKSUM not in document:
        return False
    if document.pop(CHECKSUM) != checksum(document):
        raise damaged(path, "its checksum does not fit its content, so it was changed after it was written")
    return True


def checksum(value: object) -> str:
    """Hash JSON data by content: 32 hexadecimal digits."""
    return hashlib.blake2b(canonical(value), digest_size=16).hexdigest()


def canonical(value: object) -> bytes:
    """Write JSON data in one way only: what is equal has equal bytes.

    Raises:
        ValueError: It has a nan, an infinity or half a character.
        TypeError: It has something that JSON does not.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def parse(data: bytes) -> Any:
    """Read JSON more strictly than Python does: no nan, no repeated key, no half characters, no great depth.

    Raises:
        ValueError: It is not such JSON.
        RecursionError: It is far too deep.
    """
    value = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    level, depth = [value], 0
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"Lists and dictionaries are nested more than {_DEEPEST} deep.")
    canonical(value)
    return value


def damaged(path: Path, why: str) -> RunFolderError:
    """Say that a file is damaged, why, and what to do."""
    return RunFolderError(f"{path} is damaged, {why}; restore it from a copy, or run again in another folder.")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("A key is there twice.")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON.")
