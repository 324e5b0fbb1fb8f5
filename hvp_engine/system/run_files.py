"""The two files of a finished run, ``manifest.json`` and ``spectra.safetensors``: written together, read with checks.

The manifest has a checksum of itself and one of the other file. Version 1 had no checksum of itself, version 2 no
residuals; both are still read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hvp_engine.errors import RunFolderError
from hvp_engine.system import files, json_files
from hvp_engine.system.tensor_files import Layout, Tensors, read_note, read_tensors, tensor_chunks

FORMAT = "hvp_engine run"
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
SPECTRA = "spectra.safetensors"
CHECKPOINT = "hvp_engine-checkpoint"
"""The folder of an unfinished job inside its run folder."""

WITH_RESIDUALS = 3
"""The first version whose spectra have residuals and single products."""

_UNSEALED = 1  # the last version without a checksum of the manifest


def write_run(folder: str | os.PathLike[str], document: Mapping[str, Any], tensors: Tensors | None = None) -> None:
    """Write a document as the manifest, and tensors; both files are replaced only when both are whole.

    Args:
        folder: Where; made if needed.
        document: The content of the manifest.
        tensors: What goes beside it, as spectra.safetensors; None for a result that stands in the document.

    Raises:
        ConfigurationError: If the document cannot be written as JSON.
        RunFolderError: If a file cannot be written, or is there and not hvp_engine's; the earlier ones are then intact.
    """
    root = files.path_of(folder)
    header: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    contents: dict[Path, files.Chunks] = {}
    if tensors is not None:
        contents[root / SPECTRA] = tensor_chunks(tensors, _note(FORMAT_VERSION))
        header["sha256"] = {SPECTRA: _sha256(contents[root / SPECTRA])}
    contents[root / MANIFEST] = json_files.json_chunks({**document, **header})
    with files.explained(root):
        root.mkdir(parents=True, exist_ok=True)
    refuse_strangers(root)
    files.write_atomic(contents)


def is_finished(folder: Path) -> bool:
    """Say whether a result, or something else of its name, is in a folder."""
    return os.path.lexists(folder / MANIFEST)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the document that ``write_run`` wrote.

    Raises:
        RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
    """
    root = files.path_of(folder)
    if not os.path.isdir(root):
        raise RunFolderError(f"There is no run folder {root}; check the path, it is the `out` folder of a run.")
    path = root / MANIFEST
    if not os.path.lexists(path):
        if os.path.lexists(root / CHECKPOINT):
            raise RunFolderError(
                f"The job in {root} is not finished: it runs, or was interrupted; the same call or command again goes "
                "on with it."
            )
        raise RunFolderError(f"{root} is not a run folder, it has no {MANIFEST}; check the path.")
    document = json_files.read_unsealed(path)
    if document.get("format") != FORMAT:
        raise RunFolderError(f"{path} was not written by hvp_engine; check the path, or choose another folder.")
    version = document.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise RunFolderError(
            f"{root} has format version {version}, this hvp_engine reads {FORMAT_VERSION}; upgrade hvp-engine."
        )
    has_checksum = json_files.verify(path, document)
    known = type(version) is int and version >= _UNSEALED
    if not known or not (has_checksum or version == _UNSEALED):
        raise json_files.damaged(path, "its format version or its checksum is missing")
    return document


def read_spectra(folder: str | os.PathLike[str], document: Mapping[str, Any], layout: Layout) -> dict[str, Tensor]:
    """Read the tensors that ``write_run`` wrote beside a document, on the CPU.

    Args:
        folder: Where.
        document: What :func:`read_manifest` gave.
        layout: Dtype and shape of every tensor there, by name.

    Raises:
        RunFolderError: If the file is missing, damaged, or not the one that the document was written with.
    """
    path = files.path_of(folder) / SPECTRA
    found = read_tensors(path, layout)
    checksums = document.get("sha256")
    known = checksums.get(SPECTRA) if isinstance(checksums, dict) else None
    if known != found.sha256 or found.note != _note(document["format_version"]):
        raise RunFolderError(
            f"{path} is not the file that {MANIFEST} describes: it was changed, or comes from another run; "
            "restore both files from one run, or run again in another folder."
        )
    return found.tensors


def refuse_strangers(folder: Path) -> None:
    """Raise where a result would be written over what somebody else put there.

    Raises:
        RunFolderError: A file of the name of a result is there and hvp_engine did not write it.
    """
    for path, ours in ((folder / MANIFEST, _is_our_manifest), (folder / SPECTRA, _is_our_spectra)):
        if os.path.lexists(path) and not ours(path):
            raise RunFolderError(
                f"{path} is there already and was not written by hvp_engine, or is damaged: it is not overwritten. "
                "Choose another folder for the results, or move that file away."
            )


def _is_our_manifest(path: Path) -> bool:
    try:
        return json_files.read_unsealed(path).get("format") == FORMAT
    except RunFolderError:
        return False


def _is_our_spectra(path: Path) -> bool:
    try:
        return read_note(path).startswith(f"{FORMAT}, version ")
    except RunFolderError:
        return False


def _note(version: int) -> str:
    return f"{FORMAT}, version {version}"


def _sha256(chunks: files.Chunks) -> str:
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()
