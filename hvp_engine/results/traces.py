"""Traces of blocks with their bars: kept, saved, tabulated."""

from __future__ import annotations

import os
from typing import Any

from hvp_engine.results.by_block import ByBlock, read_blocks
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.record import estimate_of, plain
from hvp_engine.results.tabular import Cells
from hvp_engine.results.words import number_text
from hvp_engine.system import run_files
from hvp_engine.system.formatting import format_count


class Traces(ByBlock[Estimate]):
    """The trace of every block."""

    def record(self) -> dict[str, Any]:
        """Return everything as plain data; bars that there are not are None."""
        blocks = [{"name": name, "numel": self.numel[name], "trace": plain(found)} for name, found in self.items()]
        return {"blocks": blocks}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written.
        """
        run_files.write_run(folder, {"run": self.manifest, **self.record()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Traces:
        """Read a run folder; every number has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        document, blocks, path = read_blocks(folder)
        found = {name: estimate_of(block.get("trace"), path) for name, block in blocks.items()}
        return cls(found, {name: block["numel"] for name, block in blocks.items()}, document["run"])

    def _cells(self) -> Cells:
        rows = [
            (name, (format_count(self.numel[name]), number_text(found).line, self.products(name)))
            for name, found in self.items()
        ]
        return Cells(("parameters", "trace", "products"), rows)
