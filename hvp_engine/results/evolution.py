"""How spectra change over training: the runs of one folder, ``step-000100`` and so on, in the order of their steps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.words import matrix_of
from hvp_engine.system.phases import phase

_NUMBER = re.compile(r"\d+")
_TOP = 5  # eigenvalues that are followed, where so many are known

Series = dict[str, list["Estimate | None"]]
"""Numbers by block, one for each step; None where a run has no such number."""


@dataclass(frozen=True, eq=False)
class Evolution:
    """The results of several runs, in order.

    Attributes:
        runs: Their spectra.
        steps: When each was made, ascending; their places in the order where ``names`` do not tell.
        names: What they are called.
        numbered: Whether names tell the steps.
    """

    runs: tuple[Spectra, ...]
    steps: tuple[int, ...]
    names: tuple[str, ...]
    numbered: bool

    @classmethod
    def of(cls, runs: Iterable[Spectra], names: Iterable[str]) -> Evolution:
        """Put runs in order by the steps in their manifests, or else by the last number of their names.

        Where neither tells, they stay as they are.

        Args:
            runs: Two or more.
            names: What they are called, ``step-000100`` say.

        Raises:
            ConfigurationError: There are fewer than two runs, or they are of different matrices.
        """
        pairs = list(zip(names, runs, strict=True))
        if len(pairs) < 2:
            raise ConfigurationError(
                "An evolution takes two or more finished runs; wait for the next, or draw the one."
            )
        matrices = sorted({str(matrix_of(spectra.settings) or "hessian") for _, spectra in pairs})
        if len(matrices) > 1:
            raise ConfigurationError(f"The runs are of different matrices ({', '.join(matrices)}); draw those of one.")
        known = [_step(spectra, name) for name, spectra in pairs]
        steps = [step for step in known if step is not None]
        numbered = len(set(steps)) == len(pairs)
        if numbered:
            pairs = [pair for _, pair in sorted(zip(steps, pairs, strict=True), key=lambda entry: entry[0])]
        order = sorted(steps) if numbered else range(len(pairs))
        return cls(tuple(run for _, run in pairs), tuple(order), tuple(name for name, _ in pairs), numbered)

    @classmethod
    def load(cls, folders: Iterable[str | os.PathLike[str]]) -> Evolution:
        """Read run folders.

        Raises:
            ConfigurationError: As ``of``.
            RunFolderError: One is missing, damaged, foreign, of a newer version, or of another kind.
        """
        paths = [Path(folder) for folder in folders]
        runs = []
        with phase("reading the runs") as now:
            for count, path in enumerate(paths, start=1):
                runs.append(Spectra.load(path))
                now.reach(count / len(paths))
        return cls.of(runs, [path.name for path in paths])

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks of all runs, in the order in which they first appear."""
        return list(dict.fromkeys(name for run in self.runs for name in run))

    def spectra(self, block: str) -> list[Spectrum | None]:
        """Return the spectra of a block; None for runs without it."""
        return [run.get(block) for run in self.runs]

    @cached_property
    def top(self) -> list[Series]:
        """The largest eigenvalue, the second one and so on, as far as any run knows them as single eigenvalues."""
        every = [self._series(partial(Spectrum.largest, k=rank)) for rank in range(1, _TOP + 1)]
        return [series for series in every if any(value for values in series.values() for value in values)]

    @cached_property
    def smallest(self) -> Series:
        """The smallest eigenvalue."""
        return self._series(Spectrum.smallest)

    @cached_property
    def trace(self) -> Series:
        """The trace."""
        return self._series(Spectrum.trace)

    @cached_property
    def edge(self) -> list[float | None]:
        """Two over the learning rate, beyond which plain gradient descent is not stable, where runs tell it."""
        return [_metric(run, "hessian/two_over_lr") for run in self.runs]

    @cached_property
    def js0(self) -> Series:
        """The mean divergence of each block from the others, and first, of all pairs; empty where there are none."""
        if all(len(run) < 2 for run in self.runs):
            return {}
        others = [run.mean_js_estimates() for run in self.runs]
        pairs: Series = {"all pairs of blocks": [run.js0_estimate() for run in self.runs]}
        return pairs | {name: [found.get(name) for found in others] for name in self.blocks}

    def plot(self, figure: str, path: str | os.PathLike[str] | None = None, **options: Any) -> Any:
        """Draw a figure of the evolution, one panel per block.

        Args:
            figure: ``"extremes"``, ``"trace"``, ``"js0"`` or ``"density"``.
            path: Where to write; None writes nothing.
            options: ``blocks``, ``figsize`` and ``ax``, as for :meth:`Spectra.plot`; with eigenvalues ``scale`` and
                ``share_x`` too, and with densities ``sigma``.

        Returns:
            The :class:`matplotlib.figure.Figure`, or ``ax`` where it is given.

        Raises:
            ConfigurationError: There is no such figure, or an option is no such thing.
            RunFolderError: The file cannot be written.
        """
        from hvp_engine.results.figures import evolution  # noqa: PLC0415 - matplotlib takes half a second to import

        if figure == "density":
            return evolution.plot_densities({name: self.spectra(name) for name in self.blocks}, self, path, **options)
        draw: dict[str, Callable[[], tuple[str, Sequence[Series]]]] = {
            "extremes": lambda: ("eigenvalue", [*self.top, self.smallest]),
            "trace": lambda: ("trace", [self.trace]),
            "js0": lambda: ("JS0", [self.js0]),
        }
        if figure not in draw:
            raise ConfigurationError(f"There is no figure {figure!r}; choose one of {', '.join([*draw, 'density'])}.")
        edge = self.edge if figure == "extremes" else ()
        return evolution.plot_series(*draw[figure](), self, path, edge=edge, **options)

    def _series(self, number: Callable[[Spectrum], Estimate]) -> Series:
        return {name: [_tried(number, spectrum) for spectrum in self.spectra(name)] for name in self.blocks}


def _metric(spectra: Spectra, name: str) -> float | None:
    """Return what a training's logger wrote beside a run."""
    match spectra.manifest.get("training"):
        case {"metrics": {**metrics}} if isinstance(found := metrics.get(name), (int, float)):
            return float(found)
    return None


def _step(spectra: Spectra, name: str) -> int | None:
    """Return the step of training at which a run was made."""
    match spectra.manifest.get("training"):
        case {"step": int(step)}:
            return step
    numbers = _NUMBER.findall(name)
    return int(numbers[-1]) if numbers else None


def _tried(number: Callable[[Spectrum], Estimate], spectrum: Spectrum | None) -> Estimate | None:
    """Return a number, if the spectrum is there and tells it."""
    try:
        return None if spectrum is None else number(spectrum)
    except ConfigurationError:  # so many eigenvalues are not known
        return None
