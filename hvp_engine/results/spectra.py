"""The result of a run: the spectra of all blocks, in block order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from hvp_engine.errors import ConfigurationError
from hvp_engine.results import distances, stored, table
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system import run_files
from hvp_engine.system.formatting import first_names


class Spectra(Mapping[str, Spectrum]):
    """Spectra by block name; matrices of distances have the order of ``list(spectra)``.

    Attributes:
        manifest: The facts of the run (configuration, seed, versions, hashes), all of it writable as JSON.
    """

    def __init__(self, spectra: Iterable[Spectrum], manifest: Mapping[str, Any] | None = None) -> None:
        """Collect spectra under their names.

        Args:
            spectra: One or more spectra with distinct names.
            manifest: The facts of the run.

        Raises:
            ConfigurationError: If there is no spectrum, one is something else, two have the same name, or the
                manifest is not a mapping.
        """
        if manifest is not None and not isinstance(manifest, Mapping):
            raise ConfigurationError(f"The manifest must be a mapping of facts, not {type(manifest).__name__}.")
        self.manifest: dict[str, Any] = dict(manifest or {})
        self._spectra: dict[str, Spectrum] = {}
        for spectrum in spectra if isinstance(spectra, Iterable) else [spectra]:
            if not isinstance(spectrum, Spectrum):
                raise ConfigurationError(
                    f"Spectra are made of Spectrum objects, not of {type(spectrum).__name__}; "
                    "build them with Spectrum.from_tridiagonal."
                )
            if spectrum.name in self._spectra:
                raise ConfigurationError(f"Two spectra have the name {spectrum.name!r}; name the blocks differently.")
            self._spectra[spectrum.name] = spectrum
        if not self._spectra:
            raise ConfigurationError("There are no spectra; pass at least one block.")

    def __getitem__(self, name: str) -> Spectrum:
        if name not in self._spectra:
            # A mapping's own error: "in" and get() rely on it.
            raise KeyError(f"{name!r} is none of the blocks {first_names(list(self))}.")
        return self._spectra[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spectra)

    def __len__(self) -> int:
        return len(self._spectra)

    def __repr__(self) -> str:
        return f"Spectra({list(self)})"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was asked for: the manifest's configuration, empty where it has none."""
        config = self.manifest.get("config")
        return config if isinstance(config, Mapping) else {}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written (a full disk, say); earlier files are then intact.
        """
        blocks = [stored.entry(spectrum) for spectrum in self.values()]
        tensors = {f"{name}/{key}": getattr(s, key) for name, s in self.items() for key in stored.ARRAYS}
        run_files.write_run(folder, {"run": self.manifest, "blocks": blocks}, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Spectra:
        """Read a run folder; every array has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        manifest, spectra = stored.read(folder)
        return cls(spectra, manifest)

    def js_distance(self, *, legacy: bool = False) -> FloatArray:
        """Compute the Jensen-Shannon divergences between all pairs of blocks, base 2, in [0, 1], without a square root.

        Each block is smoothed with its own sigma, ``sqrt(1e-5)`` times its range, as in figures
        (see ``hvp_engine.results.distances.jensen_shannon``).

        Args:
            legacy: Give the published un-normalised sum over 50,000 grid points instead; it depends on the
                grid (see ``hvp_engine.results.distances.jensen_shannon_legacy``).

        Returns:
            Symmetric matrix, float64 of shape (blocks, blocks).
        """
        return distances.jensen_shannon_legacy(list(self.values())) if legacy else self._js_distance.copy()

    @cached_property
    def _js_distance(self) -> FloatArray:
        return distances.jensen_shannon(list(self.values()))

    def js0(self) -> float:
        """Average the Jensen-Shannon distances over distinct pairs of blocks; nan for a single block."""
        return distances.mean_of_pairs(self._js_distance)

    def mean_js_distance(self) -> FloatArray:
        """Average the Jensen-Shannon distances of each block to the others, shape (blocks,); nan if none."""
        return distances.mean_to_others(self._js_distance)

    def wasserstein(self) -> FloatArray:
        """Compute exact Wasserstein-1 distances between the nodes of all pairs, float64 of shape (blocks, blocks)."""
        return distances.wasserstein(list(self.values()))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the densities of all blocks as small multiples; the suffix (.png, .pdf, .svg) is the format.

        Raises:
            ConfigurationError: If the suffix names no known format.
            RunFolderError: If the file cannot be written.
        """
        from hvp_engine.results import plots  # noqa: PLC0415 - matplotlib takes half a second to import

        plots.plot_spectra(self, path, self.settings)

    def plot_js(self, path: str | os.PathLike[str]) -> None:
        """Draw the Jensen-Shannon distances between all blocks as a heat map; the suffix chooses the format.

        Raises:
            ConfigurationError: If the suffix names no known format.
            RunFolderError: If the file cannot be written.
        """
        from hvp_engine.results import plots  # noqa: PLC0415 - matplotlib takes half a second to import

        plots.plot_js(list(self), self._js_distance, path)

    def summary(self) -> str:
        """Write the table of ``hvp_engine.results.table.summary_table`` as plain text."""
        return table.summary_text(self, self._js_distance)
