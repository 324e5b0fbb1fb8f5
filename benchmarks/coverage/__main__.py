"""Count how often the 95 % bars hold on matrices whose spectrum is known, and what blocks with a tolerance take.

    python -m benchmarks.coverage [--seeds 200] [--out benchmarks/results]

One core, some minutes. Writes coverage.json and coverage.md; the same seeds give the same numbers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from benchmarks.coverage import bars, matrices, pairs, report, stops, streams

# Steps, single products and probes of what is judged: short and long streams, with and without single products.
SETTINGS = ((30, 0, 1), (50, 0, 1), (50, 4, 1), (30, 4, 3))
TOLERANCES = (0.05, 0.02, 0.01)
SINGLES = 4
_STOPPED = 4  # one stream in so many begins a block that stops by a tolerance
_TOGETHER = 10  # matrices whose distances are compared
Setting = tuple[int, int, int]


def main() -> None:
    """Run the study and write its two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="streams of each matrix")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder for the files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)  # before the minutes that the study takes
    every = matrices.every()
    found = [streams.run(matrix, arguments.seeds, stops.STEPS, SINGLES, seed) for seed, matrix in enumerate(every)]
    blocks = []
    for matrix, own in zip(every, found, strict=True):
        print(matrix.name, flush=True)
        blocks.append(study(matrix, own))
    together = [slice(first, first + _TOGETHER) for first in range(0, len(every), _TOGETHER)]
    results = {
        "seeds": arguments.seeds,
        "stopped": len(range(0, arguments.seeds, _STOPPED)),
        "settings": SETTINGS,
        "tolerances": TOLERANCES,
        "matrices": blocks,
        "groups": [study_of_pairs(every[some], found[some]) for some in together],
    }
    (arguments.out / "coverage.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "coverage.md").write_text(report.markdown(results))


def study(matrix: matrices.Matrix, found: streams.Streams) -> dict[str, Any]:
    """Judge what the streams of one matrix give."""
    truth, seeds = stops.distribution(matrix), len(found.steps)
    groups = [[(first + k) % seeds for k in range(stops.PROBES)] for first in range(seeds)]
    some = groups[::_STOPPED]
    kept = {str(t): [vars(stops.stop(matrix, truth, found, rows, t)) for rows in some] for t in TOLERANCES}
    return {
        "name": matrix.name,
        "numel": matrix.numel,
        "chosen_on": matrix.chosen_on,
        "bars": {_key(setting): _coverage(_bars(matrix, found, setting)) for setting in SETTINGS},
        "stops": {tolerance: _kept(ends, float(tolerance)) for tolerance, ends in kept.items()},
        "fixed": _short(np.median([stops.fixed(matrix, truth, found, rows) for rows in groups[:: stops.PROBES]])),
    }


def study_of_pairs(some: Sequence[matrices.Matrix], found: Sequence[streams.Streams]) -> dict[str, Any]:
    """Judge the distances between some matrices."""
    truth = pairs.Truth(some)

    def bars_of(setting: Setting) -> Iterator[bars.Bar]:
        steps, singles, probes = setting
        for first in range(0, len(found[0].steps) - probes + 1, _STOPPED * probes):
            rows = list(range(first, first + probes))
            yield from pairs.pair_bars(
                truth,
                [streams.spectrum(one, own, rows, steps, singles) for one, own in zip(some, found, strict=True)],
            )

    name = f"{some[0].name} to {some[-1].name}"
    return {"name": name, "bars": {_key(setting): _coverage(bars_of(setting)) for setting in SETTINGS}}


def _key(setting: Setting) -> str:
    return ",".join(map(str, setting))


def _coverage(found: Iterable[bars.Bar]) -> dict[str, Any]:
    """Count, for each bar, how often it holds, its median width, and how often there is one."""
    every: dict[str, list[bars.Bar]] = defaultdict(list)
    for bar in found:
        every[bar.name].append(bar)
    return {
        name: {
            "held": _short(np.mean([bar.held for bar in several])),
            "width": _short(np.median([bar.width for bar in several])),
            "count": len(several),
            "bound": several[0].bound,
        }
        for name, several in every.items()
    }


def _bars(matrix: matrices.Matrix, found: streams.Streams, setting: Setting) -> Iterator[bars.Bar]:
    steps, singles, probes = setting
    for number, first in enumerate(range(0, len(found.steps) - probes + 1, probes)):
        spectrum = streams.spectrum(matrix, found, list(range(first, first + probes)), steps, singles)
        yield from bars.scalar_bars(matrix, spectrum)
        if number % _STOPPED == 0:
            yield from bars.shape_bars(matrix, spectrum)


def _short(number: SupportsFloat) -> float:
    """Round to what the tables can use."""
    return float(f"{float(number):.4g}")


def _kept(ends: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """Count how many blocks reached a tolerance, and how many of these kept it."""
    reached = [end for end in ends if end["reached"]]
    kept = [end["error"] <= tolerance for end in reached]
    medians = {
        name: _short(np.median([end[name] for end in ends])) for name in ("steps", "probes", "products", "error")
    }
    worst = _short(max((end["error"] for end in reached), default=0.0))
    return {"reached": len(reached), "kept": int(np.sum(kept)), "worst": worst, **medians}


if __name__ == "__main__":
    main()
