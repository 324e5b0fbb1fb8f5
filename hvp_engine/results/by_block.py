"""Results by block name with the facts of their run: what small kinds of results share."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hvp_engine.results.of_blocks import OfBlocks
from hvp_engine.results.tabular import Row, flat
from hvp_engine.system import run_files
from hvp_engine.system.json_files import damaged

T = TypeVar("T")
_LARGEST = 1 << 62


class ByBlock(OfBlocks[T]):
    """A mapping of block names to what was found of each.

    Attributes:
        manifest: The facts of the run, all of it writable as JSON.
        numel: Number of parameters by block name.
    """

    def __init__(
        self, found: Mapping[str, T], numel: Mapping[str, int], manifest: Mapping[str, Any] | None = None
    ) -> None:
        """Take what was found.

        Args:
            found: By block name.
            numel: Number of parameters by block name.
            manifest: The facts of the run.
        """
        self._blocks, self.numel = dict(found), dict(numel)
        self.manifest: dict[str, Any] = dict(manifest or {})

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return plain data, under ``"blocks"`` an entry for each."""

    def rows(self) -> list[Row]:
        """Return every number unrounded, a row per block: an estimate with its bar in columns beside it."""
        return [flat(entry) for entry in self.record()["blocks"]]

    def products(self, block: str) -> str:
        """Say how many products a block took, and ``!`` where the tolerance was not reached."""
        taken = self.manifest.get("sampling", {}).get(block, {})
        missed = block in self.manifest.get("not_reached", ())
        return f"{taken.get('products', '')}{'!' * missed}"


def read_blocks(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]], Path]:
    """Read a manifest with a list of blocks.

    Returns:
        The whole document; the entry of each block by its name, of which ``"numel"`` is a size; the manifest's path.

    Raises:
        RunFolderError: The folder is missing, damaged, foreign, or of a newer version.
    """
    document, path = run_files.read_manifest(folder), Path(folder) / run_files.MANIFEST
    match document:
        case {"run": dict(), "blocks": [*blocks]} if blocks:
            entries: dict[str, dict[str, Any]] = {}
        case _:
            raise damaged(path, "its facts or its blocks are missing")
    for block in blocks:
        match block:
            case {"name": str(name), "numel": int(numel)} if name not in entries and 1 <= numel < _LARGEST:
                entries[name] = block
            case _:
                raise damaged(path, "an entry of its blocks is not one, or is there twice")
    return document, entries, path
