"""Bars for the choice of data, of all blocks of a run: kept, saved, tabulated, and turned into a size of the data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.data_error import ENDS, HALVES, QUANTITIES, BlockDataError, GroupForms, error_of_block
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.jackknife import variance_range
from hvp_engine.results.of_blocks import OfBlocks
from hvp_engine.results.record import plain
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.tabular import Cells, Row, flat
from hvp_engine.results.words import matrix_of
from hvp_engine.system import run_files
from hvp_engine.system.formatting import format_count, format_number
from hvp_engine.system.json_files import damaged

FOLDER = "data_error"
"""Inside the run folder of spectra, the run folder of their bars for the choice of data."""

_ARRAYS = ("forms", "gram", "quotients", "residuals")
_BAR = 0.05  # relative; the default of what is asked for
_LARGEST = 1 << 62


class DataErrors(OfBlocks[BlockDataError]):
    """Bars for the choice of data by block name.

    Attributes:
        manifest: The facts of the run, all of it writable as JSON.
        samples: (G,) int64: samples of each group of the data; batches where their samples cannot be counted.
        weights: (G,) float64: what each group weighs in the objective: tokens, for a loss that counts them.
    """

    def __init__(
        self, forms: Mapping[str, GroupForms], samples: NDArray[np.int64], manifest: Mapping[str, Any] | None = None
    ) -> None:
        """Estimate the errors from what the products of the groups gave.

        Args:
            forms: By block name, at least one, all of the same groups.
            samples: (G,): samples of each group.
            manifest: The facts of the run.

        Raises:
            ConfigurationError: There is no block, or one half of the data has no weight.
        """
        if not forms:
            raise ConfigurationError("There are no blocks whose error from the choice of data is known; pass one.")
        self.manifest: dict[str, Any] = dict(manifest or {})
        self.samples = samples
        self.weights: FloatArray = next(iter(forms.values())).weights
        self._forms = dict(forms)
        self._blocks = {name: error_of_block(found) for name, found in forms.items()}

    def centred(self, values: Mapping[str, tuple[float, float]]) -> DataErrors:
        """Return the same bars around better values of trace and Frobenius norm on the data.

        Args:
            values: Trace and norm by block name, for all blocks.
        """
        moved = DataErrors(self._forms, self.samples, self.manifest)
        moved._blocks = {name: block.centred(*values[name]) for name, block in self.items()}
        return moved

    def samples_for(self, bar: float = _BAR) -> dict[str, dict[str, float]]:
        """Say how many samples it takes until quantities on the data are as near to the expected ones as wanted.

        From the scatter between the groups, whose share in the error falls with the root of the number of samples, and
        from what a small data set adds to norms and extremes, which falls with the number
        (:meth:`BlockDataError.growth`). It is assumed that more samples are drawn like these ones, group by group
        independently (inside a group they may depend on each other), and that the model stays as it is. A variance
        from G groups is itself uncertain: see ``certainty``.

        Args:
            bar: Wanted half-width of the 95 % bar, relative to the value's magnitude.

        Returns:
            By block, by ``"trace"``, ``"frobenius_norm"``, ``"largest"`` and ``"smallest"``; infinite where the value
            is 0, nan where the groups are too few. Times ``weights.sum() / samples.sum()`` they are tokens, for a loss
            that counts those.

        Raises:
            ConfigurationError: The bar is not above 0.
        """
        if not (isinstance(bar, (int, float)) and 0.0 < bar < math.inf):
            raise ConfigurationError(f"bar={bar!r} must be a number above 0: a share of the value, for instance 0.05.")
        total = float(self.samples.sum())
        return {name: {q: total * block.growth(q, bar) for q in QUANTITIES} for name, block in self.items()}

    @property
    def certainty(self) -> tuple[float, float]:
        """Factors between which a number of samples may be off, 95 %: the variance comes from few groups."""
        return variance_range(max(1, len(self.weights) - 1))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written.
        """
        probes = len(next(iter(self._forms.values())).forms)
        blocks = [{"name": name, "numel": found.numel} for name, found in self._forms.items()]
        document = {"run": self.manifest, "blocks": blocks, "groups": len(self.weights), "probes": probes}
        tensors = {f"{name}/{key}": getattr(found, key) for name, found in self._forms.items() for key in _ARRAYS}
        run_files.write_run(folder, document, {**tensors, "weights": self.weights, "samples": self.samples})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> DataErrors:
        """Read a run folder; every array has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        document = run_files.read_manifest(folder)
        path = Path(folder) / run_files.MANIFEST
        match document:
            case {"run": dict(facts), "blocks": [*blocks], "groups": int(groups), "probes": int(probes)} if blocks:
                numel = sizes_by_name(path, blocks)
            case _:
                raise damaged(path, "its facts or its blocks are missing")
        if not (1 <= groups < _LARGEST and 1 <= probes < _LARGEST):
            raise damaged(path, "its numbers of groups and probes are none")
        shapes = {
            "forms": (probes, groups),
            "gram": (probes, groups, groups),
            "quotients": (HALVES, ENDS, groups),
            "residuals": (HALVES, ENDS),
        }
        layout = {f"{name}/{key}": (torch.float64, shapes[key]) for name in numel for key in _ARRAYS}
        whole: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {**layout, "weights": (torch.float64, (groups,))}
        tensors = run_files.read_spectra(folder, document, {**whole, "samples": (torch.int64, (groups,))})
        arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise damaged(Path(folder) / run_files.SPECTRA, "its numbers are not all finite")
        forms = {
            name: GroupForms(size, arrays["weights"], **{key: arrays[f"{name}/{key}"] for key in _ARRAYS})
            for name, size in numel.items()
        }
        try:
            return cls(forms, arrays["samples"], facts)
        except ConfigurationError as error:
            raise damaged(Path(folder) / run_files.SPECTRA, "its weights are none") from error

    def record(self) -> dict[str, Any]:
        """Return the bars as plain data; those that there are not are None."""
        return {
            "groups": len(self.weights),
            "samples": int(self.samples.sum()),
            "blocks": [
                {
                    "name": name,
                    "numel": self._forms[name].numel,
                    **{quantity: plain(getattr(found, quantity)) for quantity in QUANTITIES},
                }
                for name, found in self.items()
            ],
        }

    def summary(self, bar: float = _BAR) -> str:
        """Write a table: values for the expected Hessian with their 95 % bars, and the samples that a bar takes."""
        return self._table(bar).text()

    def rows(self) -> list[Row]:
        """Return every number unrounded, a row per block: an estimate with its bar in columns beside it."""
        return [flat(entry) for entry in self.record()["blocks"]]

    def _cells(self) -> Cells:
        return self._table(_BAR)

    def _table(self, bar: float) -> Cells:
        needed = self.samples_for(bar)
        share = f"{100 * bar:.3g} %"
        titles = ("trace", "Frobenius norm", "smallest", "largest", f"trace to {share}", f"largest to {share}")
        rows: list[tuple[str, tuple[str, ...]]] = []
        for block, found in self.items():
            bars = (found.trace, found.frobenius_norm, found.smallest, found.largest)
            counts = (needed[block]["trace"], needed[block]["largest"])
            rows.append((block, (*map(_with_bar, bars), *map(_count, counts))))
        return Cells(titles, rows, [self._heading()], [self._footing()])

    def _heading(self) -> str:
        samples, weight = int(self.samples.sum()), float(self.weights.sum())
        weighed = "" if weight == samples else f", weight {weight:,.10g}"
        matrix = matrix_of(self.manifest.get("config"))
        return (
            f"Choice of data: 95 % bars of the expected {matrix or 'Hessian'} from "
            f"{len(self.weights)} groups of the data "
            f"({format_count(samples)} samples{weighed}); errors of probes and steps come on top."
        )

    def _footing(self) -> str:
        least, most = self.certainty
        per_sample = float(self.weights.sum() / self.samples.sum())
        weighed = "" if per_sample == 1.0 else f" A sample weighs {format_number(per_sample)} on average."
        return (
            f"Last columns: samples until the data's own value is that near, if more are drawn like these ones; known "
            f"to a factor of {format_number(least, 2)} to {format_number(most, 2)}.{weighed}"
        )


def sizes_by_name(path: Path, blocks: list[Any]) -> dict[str, int]:
    """Return the sizes of a manifest's blocks by name."""
    sizes: dict[str, int] = {}
    for block in blocks:
        match block:
            case {"name": str(name), "numel": int(numel)} if name not in sizes and 1 <= numel < _LARGEST:
                sizes[name] = numel
            case _:
                raise damaged(path, "an entry of its blocks is not one, or is there twice")
    return sizes


def _with_bar(estimate: Estimate) -> str:
    value, low, high = (format_number(x, 3) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _count(samples: float) -> str:
    return format_count(math.ceil(samples)) if math.isfinite(samples) else format_number(samples)


def load_beside(folder: str | os.PathLike[str]) -> DataErrors | None:
    """Read the bars that belong to a run folder of spectra; None where it has none, or they are not finished.

    Raises:
        RunFolderError: They are damaged.
    """
    inside = Path(folder) / FOLDER
    return DataErrors.load(inside) if run_files.is_finished(inside) else None
