"""Files of a run folder: atomic writes, and reads that refuse what is damaged, foreign or too new."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hvp_engine.errors import ConfigurationError, RunFolderError

FORMAT = "hvp_engine run"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPECTRA = "spectra.safetensors"

Tensors = Mapping[str, "torch.Tensor | NDArray[Any]"]
_Writer = Callable[[Path], None]


def write_json_atomic(path: str | os.PathLike[str], obj: object) -> None:
    """Write ``obj`` as indented JSON with sorted keys; a failure leaves the earlier file as it was.

    Raises:
        ConfigurationError: If ``obj`` has something that JSON does not, a nan included.
        RunFolderError: If the file cannot be written.
    """
    _write_atomic({Path(path): _json_writer(obj)})


def write_tensors_atomic(
    path: str | os.PathLike[str], tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors or arrays as a safetensors file; a failure leaves the earlier file as it was.

    Args:
        path: The file.
        tensors: Tensors of any dtype and device that share no storage, or numpy arrays.
        metadata: Strings kept in the file's header.

    Raises:
        RunFolderError: If the file cannot be written.
    """
    _write_atomic({Path(path): _tensor_writer(tensors, metadata)})


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        RunFolderError: If it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged, it is not JSON ({error}); restore it or run again.") from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        RunFolderError: If it is missing, unreadable or not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise _unreadable(path, error) from error
    except SafetensorError as error:
        raise RunFolderError(
            f"{path} is damaged, it is not a whole safetensors file ({error}); restore it or run again."
        ) from error


def write_run(folder: str | os.PathLike[str], document: Mapping[str, object], tensors: Tensors) -> None:
    """Write a document as the manifest, and tensors; both files are replaced only when both are whole.

    Raises:
        ConfigurationError: If the document cannot be written as JSON.
        RunFolderError: If a file cannot be written; the earlier ones are then intact.
    """
    root = Path(folder)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION}
    checksum: dict[str, str] = {}
    # One entry: safetensors writes several in an order of its own, and the same numbers would have many checksums.
    write_tensors = _tensor_writer(tensors, {"format": f"{FORMAT}, version {FORMAT_VERSION}"})
    _json_writer(document)  # refuses a bad document before anything is written

    def spectra(temporary: Path) -> None:
        write_tensors(temporary)
        checksum[SPECTRA] = _sha256(temporary)

    def manifest(temporary: Path) -> None:
        _json_writer({**document, **header, "sha256": checksum})(temporary)

    _write_atomic({root / SPECTRA: spectra, root / MANIFEST: manifest})


def read_run(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the document and the tensors that ``write_run`` wrote.

    Raises:
        RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
    """
    root = Path(folder)
    if not root.is_dir():
        raise RunFolderError(f"There is no run folder {root}; check the path, it is the `out` folder of a run.")
    if not (root / MANIFEST).exists():
        raise RunFolderError(f"{root} is not a run folder, it has no {MANIFEST}; check the path.")
    document = read_json(root / MANIFEST)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RunFolderError(f"{root / MANIFEST} was not written by hvp_engine; check the path.")
    version = document.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise RunFolderError(
            f"{root} has format version {version}, this hvp_engine reads {FORMAT_VERSION}; upgrade hvp-engine."
        )
    path = root / SPECTRA
    tensors, _ = read_tensors(path)
    checksums = document.get("sha256")
    if not isinstance(checksums, dict) or checksums.get(SPECTRA) != _sha256(path):
        raise RunFolderError(
            f"{path} is not the file that {MANIFEST} describes: it was changed, or comes from another run; "
            "restore both files from one run, or run again."
        )
    return document, tensors


def _write_atomic(writers: Mapping[Path, _Writer]) -> None:
    """Write and sync every file under a temporary name beside its own, then rename all of them."""
    with ExitStack() as stack:
        pending: list[tuple[Path, Path]] = []
        for path, write in writers.items():
            with _explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
                stack.callback(temporary.unlink, missing_ok=True)
                temporary.touch(exist_ok=False)
                mode = temporary.stat().st_mode
                write(temporary)
                temporary.chmod(mode)  # safetensors puts a file of its own there, closed to other users
                _sync(temporary)
            pending.append((temporary, path))
        for temporary, path in pending:
            with _explained(path):
                os.replace(temporary, path)
                _sync(path.parent)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into a RunFolderError with its cause and fix."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else _error_number(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"The disk is full: {path} could not be written ({error}); the earlier files in "
                f"{path.parent} are intact; free some space there, or choose another folder."
            ) from error
        raise RunFolderError(
            f"{path} could not be written ({error}); earlier files in {path.parent} are intact; "
            "choose a folder that you may write to."
        ) from error


def _error_number(error: SafetensorError) -> int | None:
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json_writer(obj: object) -> _Writer:
    try:
        text = json.dumps(obj, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The manifest cannot be written as JSON ({error}); use strings, finite numbers, lists and dictionaries."
        ) from error

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _tensor_writer(tensors: Tensors, metadata: Mapping[str, str] | None) -> _Writer:
    def write(path: Path) -> None:
        save_file({key: _tensor(value) for key, value in tensors.items()}, path, dict(metadata or {}))

    return write


def _tensor(value: torch.Tensor | NDArray[Any]) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous()
    return torch.from_numpy(np.array(value, order="C"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unreadable(path: str | os.PathLike[str], error: OSError) -> RunFolderError:
    return RunFolderError(f"{path} cannot be read ({error.strerror or error}); check the path and its permissions.")
