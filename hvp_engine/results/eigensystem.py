"""The result of a job of eigenpairs: those of all blocks, in block order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.eigenpairs import Eigenpairs, read, write
from hvp_engine.results.of_blocks import OfBlocks
from hvp_engine.results.tabular import Cells, Row
from hvp_engine.system.formatting import format_count, format_number

_COLUMNS = ("parameters", "smallest", "largest", "largest residual", "converged", "products", "ended by")


class Eigensystem(OfBlocks[Eigenpairs]):
    """Eigenpairs by block name.

    Attributes:
        manifest: The facts of the run, all of it writable as JSON.
    """

    def __init__(self, pairs: Iterable[Eigenpairs], manifest: Mapping[str, Any] | None = None) -> None:
        """Take the eigenpairs of some blocks.

        Args:
            pairs: One per block, at least one.
            manifest: The facts of the run.

        Raises:
            ConfigurationError: There is no block, or two have the same name.
        """
        self.manifest: dict[str, Any] = dict(manifest or {})
        self._blocks: dict[str, Eigenpairs] = {}
        for found in pairs:
            if found.name in self._blocks:
                raise ConfigurationError(f"Two blocks have the name {found.name!r}; name the blocks differently.")
            self._blocks[found.name] = found
        if not self._blocks:
            raise ConfigurationError("There are no eigenpairs; pass those of at least one block.")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written (a full disk, say); earlier files are then intact.
        """
        write(list(self.values()), self.manifest, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Eigensystem:
        """Read a run folder; every array has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        facts, pairs = read(folder)
        return cls(pairs, facts)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        blocks: str | Iterable[str] | None = None,
        figsize: tuple[float, float] | None = None,
        scale: str = "linear",
        share_y: bool = False,
        ax: Any = None,
    ) -> Any:
        """Draw the values of the blocks with their residuals as bars; those that have not converged are open circles.

        Args:
            path: Where to write; the suffix (.png, .pdf, .svg) is the format. None writes nothing.
            blocks: Names of blocks, or globs; None for all.
            figsize: Width and height in inches.
            scale: Of the eigenvalues: ``"linear"``, ``"symlog"`` (linear around zero, logarithmic on either side), or
                ``"log"`` for the magnitudes of both signs.
            share_y: Whether all panels show the same range of eigenvalues.
            ax: Axes of matplotlib to draw on, as many as there are blocks.

        Returns:
            The :class:`matplotlib.figure.Figure`, which pyplot does not know; ``ax`` where it is given.

        Raises:
            ConfigurationError: If the suffix names no known format, or an argument is no such thing.
            RunFolderError: If the file cannot be written.
        """
        from hvp_engine.results.figures import eigenvalues  # noqa: PLC0415 - matplotlib takes half a second to import

        panels = {name: eigenvalues.Panel(*found.panel()) for name, found in self.items()}
        options: dict[str, Any] = {"figsize": figsize, "scale": scale, "share_y": share_y, "ax": ax}
        return eigenvalues.plot_panels(panels, path, blocks=blocks, **options)

    def record(self) -> list[dict[str, Any]]:
        """Return everything but the vectors as plain data, one entry per block."""
        return [found.record() for found in self.values()]

    def rows(self) -> list[Row]:
        """Return a row for every pair, in ascending order of a block's values."""
        return [
            {
                "block": name,
                "numel": found.numel,
                "place": place,
                "value": float(found.values[place]),
                "residual": float(found.residuals[place]),
                "converged": bool(found.converged[place]),
            }
            for name, found in self.items()
            for place in range(len(found.values))
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return values and residuals of every block, and the vectors as rows where they were kept."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, found in self.items():
            arrays |= {f"{name}/values": found.values, f"{name}/residuals": found.residuals}
            if found.stored is not None:
                arrays[f"{name}/vectors"] = found.stored.numpy()
        return arrays

    def _cells(self) -> Cells:
        rows = []
        for name, found in self.items():
            numbers = (found.values[0], found.values[-1], found.residuals.max())
            cells = (
                format_count(found.numel),
                *(format_number(float(number)) for number in numbers),
                f"{int(found.converged.sum())} of {len(found.values)}",
                format_count(found.products),
                found.effort.ended_by,
            )
            rows.append((name, cells))
        return Cells(_COLUMNS, rows)
