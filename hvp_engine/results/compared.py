"""Two runs side by side: by how much the numbers of each block differ, and how far apart its spectra are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvp_engine.errors import ConfigurationError, printable
from hvp_engine.results.divergences import divergences
from hvp_engine.results.estimate import Estimate, MatrixEstimate
from hvp_engine.results.of_blocks import OfBlocks
from hvp_engine.results.record import OF_A_BLOCK, plain
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.tabular import Cells, Row, flat
from hvp_engine.results.wasserstein import wasserstein_estimate
from hvp_engine.results.words import number_text
from hvp_engine.system.formatting import abbreviate, first_names, format_count
from hvp_engine.system.phases import phase

DIFFERENCES = ("trace", "frobenius_norm", "smallest", "largest")
_TITLES = ("parameters", "trace", "Frobenius norm", "smallest", "largest", "W1", "JS")
_DIGITS, _JS_DIGITS = 4, 3
_SHOWN = 6  # differences of the jobs


@dataclass(frozen=True)
class BlockComparison:
    """One block in two runs: the second one's numbers minus the first one's, and how far apart the spectra are.

    Attributes:
        numel: Number of parameters, in the first run and in the second.
        trace: Difference of the traces.
        frobenius_norm: Of the Frobenius norms.
        smallest: Of the smallest eigenvalues.
        largest: Of the largest eigenvalues.
        wasserstein: Wasserstein-1 distance of the spectra, in the unit of the eigenvalues.
        js: Their Jensen-Shannon divergence, in [0, 1]; nan where the block has no curvature in one of the runs.
    """

    numel: tuple[int, int]
    trace: Estimate
    frobenius_norm: Estimate
    smallest: Estimate
    largest: Estimate
    wasserstein: Estimate
    js: Estimate

    @property
    def numbers(self) -> dict[str, Estimate]:
        """All numbers by name."""
        return {key: getattr(self, key) for key in (*DIFFERENCES, "wasserstein", "js")}


class Comparison(OfBlocks[BlockComparison]):
    """The blocks that two runs have in common, by name, in the order of the first.

    Bars are those of independent runs: of runs with the same probes they are longer than they must be.

    Attributes:
        names: How the runs are called, the first and the second.
        only: Blocks that only the first run has, and only the second.
        differences: In what the jobs differ, in words; empty where they are the same, or nothing is known of one.
    """

    def __init__(
        self, first: Spectra, second: Spectra, names: tuple[str, str] = ("first", "second"), said: Sequence[str] = ()
    ) -> None:
        """Compare two results.

        Args:
            first: What the differences start from.
            second: What they lead to.
            names: How the runs are called.
            said: In what the jobs differ.

        Raises:
            ConfigurationError: They have no block in common.
        """
        common = [name for name in first if name in second]
        if not common:
            raise ConfigurationError(
                f"{names[0]} and {names[1]} have no block in common ({first_names(list(first))}; "
                f"{first_names(list(second))}); compare runs of the same blocks."
            )
        self.names, self.differences = names, list(said)
        self.only = ([name for name in first if name not in second], [name for name in second if name not in first])
        flat_blocks = {*first.zero_blocks, *second.zero_blocks}
        self._blocks: dict[str, BlockComparison] = {}
        with phase("comparing spectra") as now:
            for count, name in enumerate(common, start=1):
                self._blocks[name] = _compared(first[name], second[name], name in flat_blocks)
                now.reach(count / len(common))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data; bars that there are not, and numbers, are None."""
        return {
            "first": self.names[0],
            "second": self.names[1],
            "differences": self.differences,
            "only_in_first": self.only[0],
            "only_in_second": self.only[1],
            "blocks": [
                {
                    "name": name,
                    "numel": found.numel[0],
                    "numel_in_second": found.numel[1],
                    **{key: plain(estimate) for key, estimate in found.numbers.items()},
                }
                for name, found in self.items()
            ],
        }

    def rows(self) -> list[Row]:
        """Return every number unrounded, a row per block: an estimate with its bar in columns beside it."""
        return [flat(entry) for entry in self.to_dict()["blocks"]]

    def _cells(self) -> Cells:
        rows, digits = [], {"js": _JS_DIGITS}
        for name, found in self.items():
            texts = [number_text(number, digits.get(key, _DIGITS)).line for key, number in found.numbers.items()]
            rows.append((name, (" / ".join(map(format_count, dict.fromkeys(found.numel))), *texts)))
        return Cells(_TITLES, rows, list(self._above()), list(self._below()))

    def _above(self) -> Iterator[str]:
        first, second = abbreviate(self.names)
        yield f"{second} minus {first}; W1 and JS: how far apart the spectra are."

    def _below(self) -> Iterator[str]:
        yield "±: 95 % bars, as of independent runs. ? ± b: no difference is seen, and none is larger than b."
        for run, names in zip(abbreviate(self.names), self.only, strict=True):
            if names:
                yield f"Only in {run}, and not compared: {first_names(names)} ({len(names)})."
        if self.differences:
            more = len(self.differences) - _SHOWN
            said = [printable(words) for words in self.differences[:_SHOWN]] + [f"and {more} more"] * (more > 0)
            yield f"The jobs differ (there: {abbreviate(self.names)[0]}): {'; '.join(said)}."


def _compared(one: Spectrum, other: Spectrum, is_flat: bool) -> BlockComparison:
    changed = {key: difference(OF_A_BLOCK[key](one), OF_A_BLOCK[key](other)) for key in DIFFERENCES}
    smoothers = [None if is_flat else spectrum.smoother for spectrum in (one, other)]
    return BlockComparison(
        (one.numel, other.numel),
        **changed,
        wasserstein=_between(wasserstein_estimate([one.reading, other.reading])),
        js=_between(divergences(smoothers).entries()),
    )


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Subtract an estimate from another one, made independently of it.

    Bars of chance add in squares. What has no standard error has a bound in place of a bar, and bounds add as they are.
    """
    chance = not any(math.isnan(estimate.stderr) for estimate in (first, second))
    add: Callable[[float, float], float] = math.hypot if chance else lambda a, b: a + b
    value = second.value - first.value
    below = add(second.value - second.low, first.high - first.value)
    above = add(second.high - second.value, first.value - first.low)
    reading = " or ".join(dict.fromkeys((first.reading, second.reading)))
    return Estimate(value, math.hypot(first.stderr, second.stderr), value - below, value + above, reading)


def _between(pair: MatrixEstimate) -> Estimate:
    """Return the number between the two."""
    value, low, high = (float(np.asarray(matrix)[0, 1]) for matrix in (pair.value, pair.low, pair.high))
    return Estimate(value, math.nan, low, high, pair.reading)
