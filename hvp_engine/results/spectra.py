"""The result of a run: the spectra of all blocks, in block order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results import data_errors, distances, record, stored, table
from hvp_engine.results.account import accounts
from hvp_engine.results.data_errors import DataErrors
from hvp_engine.results.divergences import Divergences, divergences
from hvp_engine.results.estimate import Estimate, MatrixEstimate
from hvp_engine.results.of_blocks import OfBlocks
from hvp_engine.results.reading import ReadingName, is_gauss
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.summary import Summary, summarize
from hvp_engine.results.tabular import Cells, Row
from hvp_engine.results.wasserstein import wasserstein_estimate
from hvp_engine.results.words import matrix_of
from hvp_engine.results.zero_blocks import zero_blocks
from hvp_engine.system import run_files
from hvp_engine.system.phases import phase


class Spectra(OfBlocks[Spectrum]):
    """Spectra by block name; matrices of distances have the order of ``list(spectra)``.

    Attributes:
        manifest: The facts of the run (configuration, seed, versions, hashes), all of it writable as JSON.
    """

    def __init__(
        self,
        spectra: Iterable[Spectrum],
        manifest: Mapping[str, Any] | None = None,
        data_error: DataErrors | None = None,
    ) -> None:
        """Collect spectra under their names.

        Args:
            spectra: One or more spectra with distinct names.
            manifest: The facts of the run.
            data_error: What the choice of data does to the same blocks; None where that was not asked for.

        Raises:
            ConfigurationError: If there is no spectrum, one is something else, two have the same name, or the
                manifest is not a mapping.
        """
        if manifest is not None and not isinstance(manifest, Mapping):
            raise ConfigurationError(f"The manifest must be a mapping of facts, not {type(manifest).__name__}.")
        self.manifest: dict[str, Any] = dict(manifest or {})
        self._data_error = data_error
        self._blocks: dict[str, Spectrum] = {}
        for spectrum in spectra if isinstance(spectra, Iterable) else [spectra]:
            if not isinstance(spectrum, Spectrum):
                raise ConfigurationError(
                    f"Spectra are made of Spectrum objects, not of {type(spectrum).__name__}; "
                    "build them with Spectrum.from_tridiagonal."
                )
            if spectrum.name in self._blocks:
                raise ConfigurationError(f"Two spectra have the name {spectrum.name!r}; name the blocks differently.")
            self._blocks[spectrum.name] = spectrum
        if not self._blocks:
            raise ConfigurationError("There are no spectra; pass at least one block.")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was asked for: the manifest's configuration, empty where it has none."""
        config = self.manifest.get("config")
        return config if isinstance(config, Mapping) else {}

    @cached_property
    def data_error(self) -> DataErrors | None:
        """Bars for the choice of data, around the spectra's own traces and norms; None where they were not asked for.

        They leave out what probes and steps do to a spectrum, the errors of ``trace()`` and ``frobenius_norm()``.
        """
        if self._data_error is None:
            return None
        values = {name: (s.trace().value, s.frobenius_norm().value) for name, s in self.items()}
        return self._data_error.centred(values)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Beside the coefficients there are the estimates with their bars, for other programs: ``load`` makes them anew.
        Bars for the choice of data go to the same files in ``data_error/`` inside it.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written (a full disk, say); earlier files are then intact.
        """
        blocks = [stored.entry(spectrum) for spectrum in self.values()]
        tensors = {f"{name}/{key}": getattr(s, key) for name, s in self.items() for key in stored.ARRAYS}
        published, matrices = record.published(self, self.js_estimate, self.js0_estimate, self.zero_blocks)
        document = {"run": self.manifest, "blocks": blocks, "estimates": published}
        run_files.write_run(folder, document, tensors | matrices)
        if self._data_error is not None:
            self._data_error.save(Path(folder) / data_errors.FOLDER)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Spectra:
        """Read a run folder; every array has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        manifest, spectra = stored.read(folder)
        return cls(spectra, manifest, data_errors.load_beside(folder))

    @cached_property
    def zero_blocks(self) -> tuple[str, ...]:
        """Names of the blocks whose curvature is zero to rounding, which have no distances and do not count in JS0."""
        return zero_blocks(list(self.values()), self.settings.get("precision"))

    def js_estimate(self) -> MatrixEstimate:
        """Estimate the Jensen-Shannon divergences between all pairs, base 2, in [0, 1], without a square root.

        Each block is smoothed with its own sigma, ``sqrt(1e-5)`` times its range, as in figures
        (see ``hvp_engine.results.divergences.divergences``). Entries of ``zero_blocks`` are nan.
        """
        return self._divergences.entries()

    def js0_estimate(self) -> Estimate:
        """Estimate the mean divergence over distinct pairs of blocks, ``zero_blocks`` left out; nan if none."""
        return self._divergences.mean_of_pairs()

    def mean_js_estimates(self) -> dict[str, Estimate]:
        """Estimate the mean divergence of each block from the others, by name; nan for ``zero_blocks``, and if none."""
        return dict(zip(self, self._divergences.means_to_others(), strict=True))

    def js_distance(self, *, legacy: bool = False, reading: ReadingName = "auto") -> FloatArray:
        """Compute the Jensen-Shannon divergences between all pairs of blocks, base 2, in [0, 1], without a square root.

        Args:
            legacy: Give the published un-normalised sum over 50,000 grid points instead; it depends on the
                grid (see ``hvp_engine.results.distances.jensen_shannon_legacy``).
            reading: ``"auto"`` gives the values of ``js_estimate``; ``"gauss"`` compares the Gauss nodes of all probes
                (see ``hvp_engine.results.distances.jensen_shannon``), which few steps make look further apart.

        Returns:
            Symmetric matrix, float64 of shape (blocks, blocks).

        Raises:
            ConfigurationError: There is no such reading.
        """
        gauss = is_gauss(reading)
        if legacy:
            return distances.jensen_shannon_legacy(list(self.values()))
        return self._gauss_distance.copy() if gauss else self.js_estimate().value

    @cached_property
    def _divergences(self) -> Divergences:
        return divergences([None if name in self.zero_blocks else spectrum.smoother for name, spectrum in self.items()])

    @cached_property
    def _gauss_distance(self) -> FloatArray:
        return distances.jensen_shannon(list(self.values()))

    def js0(self, reading: ReadingName = "auto") -> float:
        """Average the Jensen-Shannon distances over distinct pairs of blocks; nan for a single block.

        Args:
            reading: ``"auto"`` gives the value of ``js0_estimate``; ``"gauss"`` is as in ``js_distance``, and counts
                every block.

        Raises:
            ConfigurationError: There is no such reading.
        """
        if is_gauss(reading):
            return distances.mean_of_pairs(self._gauss_distance)
        return self.js0_estimate().value

    def mean_js_distance(self, reading: ReadingName = "auto") -> FloatArray:
        """Average the Jensen-Shannon distances of each block to the others, shape (blocks,); nan if none.

        Args:
            reading: ``"auto"`` gives the values of ``mean_js_estimates``; ``"gauss"`` is as in ``js_distance``.

        Raises:
            ConfigurationError: There is no such reading.
        """
        if is_gauss(reading):
            return distances.mean_to_others(self._gauss_distance)
        return np.array([estimate.value for estimate in self.mean_js_estimates().values()])

    def wasserstein_estimate(self) -> MatrixEstimate:
        """Estimate the Wasserstein-1 distances between all pairs by their smooth distribution functions."""
        return wasserstein_estimate([spectrum.reading for spectrum in self.values()])

    def wasserstein(self, reading: ReadingName = "auto") -> FloatArray:
        """Compute the Wasserstein-1 distances between all pairs, float64 of shape (blocks, blocks).

        Args:
            reading: ``"auto"`` gives the values of ``wasserstein_estimate``; ``"gauss"`` is exact on the Gauss nodes.

        Raises:
            ConfigurationError: There is no such reading.
        """
        return distances.wasserstein(list(self.values())) if is_gauss(reading) else self.wasserstein_estimate().value

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        blocks: str | Iterable[str] | None = None,
        figsize: tuple[float, float] | None = None,
        sigma: float | None = None,
        scale: str = "linear",
        share_x: bool = False,
        ax: Any = None,
    ) -> Any:
        """Draw the densities of the blocks with their 95 % bands, and mark single eigenvalues and extremes.

        Args:
            path: Where to write; the suffix (.png, .pdf, .svg) is the format. None writes nothing.
            blocks: Names of blocks, or globs; None for all.
            figsize: Width and height in inches.
            sigma: Standard deviation of the Gaussians; by default each block's ``default_sigma``.
            scale: Of the eigenvalues: ``"linear"``, ``"symlog"`` (linear around zero, logarithmic on either side), or
                ``"log"`` for the magnitudes of both signs.
            share_x: Whether all panels show the same range.
            ax: Axes of matplotlib to draw on, as many as there are blocks.

        Returns:
            The :class:`matplotlib.figure.Figure`, which pyplot does not know; ``ax`` where it is given.

        Raises:
            ConfigurationError: If the suffix names no known format, or an argument is no such thing.
            RunFolderError: If the file cannot be written.
        """
        from hvp_engine.results.figures import densities  # noqa: PLC0415 - matplotlib takes half a second to import

        options: dict[str, Any] = {"figsize": figsize, "sigma": sigma, "scale": scale, "share_x": share_x, "ax": ax}
        return densities.plot_spectra(self, self.settings, path, blocks=blocks, **options)

    def plot_js(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        blocks: str | Iterable[str] | None = None,
        figsize: tuple[float, float] | None = None,
        vmax: float = 1.0,
        ax: Any = None,
    ) -> Any:
        """Draw the Jensen-Shannon distances between the blocks, and their errors, as heat maps.

        Args:
            path: Where to write; the suffix (.png, .pdf, .svg) is the format. None writes nothing.
            blocks: Names of blocks, or globs; None for all, of which the largest 200 are drawn.
            figsize: Width and height in inches.
            vmax: Where the colours of the distances end; the same in two figures makes them comparable.
            ax: Axes of matplotlib to draw on: one for the distances alone, or two.

        Returns:
            The :class:`matplotlib.figure.Figure`, which pyplot does not know; ``ax`` where it is given.

        Raises:
            ConfigurationError: If the suffix names no known format, or an argument is no such thing.
            RunFolderError: If the file cannot be written.
        """
        from hvp_engine.results.figures import arguments, heat_map  # noqa: PLC0415 - as above

        wanted = arguments.chosen(self, blocks)
        shown = wanted if blocks is not None else arguments.largest(wanted, heat_map.MOST_BLOCKS)
        some = self if list(shown) == list(self) else Spectra(shown.values(), self.manifest)
        return heat_map.plot_js(
            list(some),
            some.js_estimate(),
            some.js0_estimate(),
            some.zero_blocks,
            path,
            matrix_of(self.settings),
            left_out=len(wanted) - len(shown),
            figsize=figsize,
            vmax=vmax,
            ax=ax,
        )

    @phase("evaluating numbers and their bars")
    def summarize(self) -> Summary:
        """Gather every number with its 95 % bar, its reading and its cost; ``record()`` makes plain data of them."""
        return summarize(self, self.mean_js_estimates(), self.js0_estimate(), self.zero_blocks, self.manifest)

    def summary(self) -> str:
        """Write the table of ``hvp_engine.results.table.summary_table`` as plain text, and the bars for the data."""
        text = table.summary_text(self.summarize())
        return text if self.data_error is None else f"{text}\n\n{self.data_error.summary()}"

    def rows(self) -> list[Row]:
        """Return the numbers of ``summarize()``, a row per block: an estimate with its bar in columns beside it."""
        return self.summarize().rows()

    def further_rows(self) -> dict[str, list[Row]]:
        """Return the quadratures as ``"nodes"``: block, number of the probe, node and weight."""
        told = self.settings.get("first_probe")
        first = told if isinstance(told, int) else 0
        return {
            "nodes": [
                {"block": name, "probe": first + k, "node": float(node), "weight": float(weight)}
                for name, spectrum in self.items()
                for k, steps in enumerate(spectrum.steps)
                for node, weight in zip(spectrum.nodes[k, :steps], spectrum.weights[k, :steps], strict=True)
            ]
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return nodes and weights of every block, its Lanczos coefficients, and how many of them each probe has."""
        keys = ("nodes", "weights", "alphas", "betas", "steps")
        return {f"{name}/{key}": getattr(spectrum, key) for name, spectrum in self.items() for key in keys}

    def _cells(self) -> Cells:
        return table.block_cells(self, accounts(self.values(), self.manifest), matrix_of(self.settings))
