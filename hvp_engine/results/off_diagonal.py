"""How much of a curvature matrix lies between its blocks: products with it and with its block diagonal, compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.data_errors import sizes_by_name
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.moments import of_probes
from hvp_engine.results.of_blocks import OfBlocks
from hvp_engine.results.record import plain
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.tabular import Cells, Row, flat
from hvp_engine.results.words import number_text
from hvp_engine.system import run_files
from hvp_engine.system.formatting import abbreviate, format_count, format_number
from hvp_engine.system.json_files import damaged

SUMS = 4
"""Numbers of a probe and a block: |Hv|^2, |Dv|^2, |Hv - Dv|^2 and (Hv)'(Dv), over the block's rows."""

_ALL = "all blocks"
_LARGEST = 1 << 62


class Agreement(NamedTuple):
    """How far ``Dv``, of the block diagonal D, is from ``Hv``, over some rows; means over probes, with 95 % bars.

    Attributes:
        ratio: ``|Hv - Dv| / |Hv|``: 0 where H is block diagonal.
        cosine: ``(Hv)'(Dv) / (|Hv| |Dv|)``: 1 there. Both are nan where there is no curvature.
    """

    ratio: Estimate
    cosine: Estimate


class OffDiagonal(OfBlocks[Agreement]):
    """What lies between blocks, as seen by random vectors: over all rows as ``whole``, over a block's by its name.

    Attributes:
        manifest: The facts of the run, all of it writable as JSON.
        numel: Parameters by block name.
        outside: Trainable parameters of the model that are in no block, and do not enter.
        noise: Relative error of one product: a ratio that is no larger is rounding.
        sums: (probes, blocks, 4) float64: what the products gave, see :data:`SUMS`.
    """

    def __init__(
        self,
        numel: Mapping[str, int],
        sums: FloatArray,
        outside: int = 0,
        noise: float = 0.0,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        """Take what the products gave.

        Args:
            numel: Parameters by block name, of two blocks or more.
            sums: (probes, blocks, 4).
            outside: Trainable parameters in no block.
            noise: Relative error of one product.
            manifest: The facts of the run.

        Raises:
            ConfigurationError: The sums are not those of these blocks, not finite, or no sums of squares.
        """
        self.sums = np.array(sums, dtype=np.float64)
        if self.sums.ndim != 3 or self.sums.shape[1:] != (len(numel), SUMS) or not self.sums.size:
            raise ConfigurationError(f"The sums must have shape (probes, {len(numel)}, {SUMS}), not {self.sums.shape}.")
        if not np.isfinite(self.sums).all() or (self.sums[..., : SUMS - 1] < 0.0).any():
            raise ConfigurationError("The sums must be finite, and those of squares not negative.")
        self.sums.setflags(write=False)
        self.numel, self.outside, self.noise = dict(numel), outside, noise
        self._blocks = {name: _agreement(self.sums[:, place]) for place, name in enumerate(self.numel)}
        self.manifest: dict[str, Any] = dict(manifest or {})

    @property
    def whole(self) -> Agreement:
        """The agreement over the rows of all blocks."""
        return _agreement(self.sums.sum(axis=1))

    @property
    def ratio(self) -> Estimate:
        """``|Hv - Dv| / |Hv|`` over all rows."""
        return self.whole.ratio

    @property
    def cosine(self) -> Estimate:
        """The cosine between ``Hv`` and ``Dv`` over all rows."""
        return self.whole.cosine

    def record(self) -> dict[str, Any]:
        """Return the numbers with their bars as plain data."""
        return {
            "whole": _record(self.whole),
            "blocks": {name: _record(agreement) for name, agreement in self.items()},
            "probes": len(self.sums),
            "outside": self.outside,
            "noise": self.noise,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written.
        """
        blocks = [{"name": name, "numel": size} for name, size in self.numel.items()]
        document = {"run": self.manifest, "blocks": blocks, "off_diagonal": self.record()}
        run_files.write_run(folder, document, {"sums": self.sums})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> OffDiagonal:
        """Read a run folder; every array has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        document = run_files.read_manifest(folder)
        path = Path(folder) / run_files.MANIFEST
        match document:
            case {
                "run": dict(facts),
                "blocks": [*blocks],
                "off_diagonal": {"probes": int(probes), "outside": int(outside), "noise": float(noise)},
            } if blocks and 1 <= probes < _LARGEST:
                numel = sizes_by_name(path, blocks)
            case _:
                raise damaged(path, "its facts, its blocks or its numbers are missing")
        layout = {"sums": (torch.float64, (probes, len(numel), SUMS))}
        tensors = run_files.read_spectra(folder, document, layout)
        try:
            return cls(numel, tensors["sums"].numpy(), outside, noise, facts)
        except ConfigurationError as error:
            raise damaged(Path(folder) / run_files.SPECTRA, "its numbers are no sums of squares") from error

    def rows(self) -> list[Row]:
        """Return both numbers with their bars, a row for the rows of every block; ``whole`` is not among them."""
        return [flat({"name": name, "numel": self.numel[name], **_record(found)}) for name, found in self.items()]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what the products gave as ``"/sums"``, see :data:`SUMS`."""
        return {"/sums": self.sums}

    def _cells(self) -> Cells:
        rows = [(_ALL, sum(self.numel.values()), self.whole)]
        rows += [(name, self.numel[name], agreement) for name, agreement in self.items()]
        cells = [
            (name, (format_count(size), number_text(ratio).line, number_text(cosine).line))
            for name, size, (ratio, cosine) in rows
        ]
        titles = ("parameters", "|Hv - Dv| / |Hv|", "cos(Hv, Dv)")
        return Cells(titles, cells, [self._heading()], list(self._footing()), "rows of")

    def _heading(self) -> str:
        config = self.manifest.get("config")
        matrix = config.get("matrix", "hessian") if isinstance(config, Mapping) else "hessian"
        count, shown = len(self.sums), abbreviate([str(matrix)])[0]  # a stranger's, perhaps
        return (
            f"Between blocks: H the {shown}, D its block diagonal; means over {format_count(count)} random "
            f"vector{'s' * (count > 1)} v, with 95 % bars."
        )

    def _footing(self) -> Iterator[str]:
        yield f"A product is known to {format_number(self.noise, 2)} of its length: a smaller ratio is rounding."
        if self.outside:
            yield f"{format_count(self.outside)} trainable parameters are in no block, and do not enter."


def _agreement(sums: FloatArray) -> Agreement:
    """Average over probes, of sums (probes, 4)."""
    whole, diagonal, between, both = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):  # nan where there is no curvature
        return Agreement(of_probes(np.sqrt(between / whole)), of_probes(both / np.sqrt(whole) / np.sqrt(diagonal)))


def _record(agreement: Agreement) -> dict[str, Any]:
    return {name: plain(estimate) for name, estimate in agreement._asdict().items()}
