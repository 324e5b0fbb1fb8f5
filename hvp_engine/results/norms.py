"""Norms of blocks: of the gradient, of the matrix, and its trace, with their bars: kept, saved, tabulated."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

from hvp_engine.results.by_block import ByBlock, read_blocks
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.record import estimate_of, plain
from hvp_engine.results.tabular import Cells
from hvp_engine.results.words import number_text
from hvp_engine.system import run_files
from hvp_engine.system.formatting import format_count, format_number
from hvp_engine.system.json_files import damaged


class GradientNorm(NamedTuple):
    """The gradient of the objective with respect to a block.

    Attributes:
        norm: Its length.
        numel: Number of parameters.
    """

    norm: float
    numel: int


class BlockNorms(NamedTuple):
    """What is known of one block.

    Attributes:
        numel: Number of parameters.
        gradient: Length of the objective's gradient with respect to it; exact to rounding.
        frobenius_norm: Of its matrix.
        trace: Of its matrix.
    """

    numel: int
    gradient: float
    frobenius_norm: Estimate
    trace: Estimate


class Norms(ByBlock[BlockNorms]):
    """Norms of every block."""

    def record(self) -> dict[str, Any]:
        """Return everything as plain data; bars that there are not are None."""
        return {
            "blocks": [
                {
                    "name": name,
                    "numel": found.numel,
                    "gradient_norm": found.gradient,
                    "frobenius_norm": plain(found.frobenius_norm),
                    "trace": plain(found.trace),
                }
                for name, found in self.items()
            ]
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written.
        """
        run_files.write_run(folder, {"run": self.manifest, **self.record()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Norms:
        """Read a run folder; every number has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        document, blocks, path = read_blocks(folder)
        found: dict[str, BlockNorms] = {}
        for name, block in blocks.items():
            length = block.get("gradient_norm")
            if not (isinstance(length, float) and math.isfinite(length) and length >= 0.0):
                raise damaged(path, "a length of a gradient is none")
            norm, trace = (estimate_of(block.get(key), path) for key in ("frobenius_norm", "trace"))
            found[name] = BlockNorms(block["numel"], length, norm, trace)
        return cls(found, {name: block["numel"] for name, block in blocks.items()}, document["run"])

    def _cells(self) -> Cells:
        titles = ("parameters", "gradient", "Frobenius norm", "trace", "products")
        rows = [
            (
                name,
                (
                    format_count(found.numel),
                    format_number(found.gradient),
                    number_text(found.frobenius_norm).line,
                    number_text(found.trace).line,
                    self.products(name),
                ),
            )
            for name, found in self.items()
        ]
        return Cells(titles, rows)
