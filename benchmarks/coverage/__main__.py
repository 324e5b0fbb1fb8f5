"""Count how often the 95 % bars hold on matrices whose spectrum is known, and what blocks with a tolerance take.

    python -m benchmarks.coverage [--seeds 200] [--out benchmarks/results]

One core, some minutes. Writes coverage.json and coverage.md; the same seeds give the same numbers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage import bars, matrices, report, stops, streams

# Steps, single products and probes of what is judged: short and long streams, with and without single products.
SETTINGS = ((30, 0, 1), (50, 0, 1), (50, 4, 1), (30, 4, 3))
TOLERANCES = (0.05, 0.02, 0.01)
SINGLES = 4
_STOPPED = 4  # one stream in so many begins a block that stops by a tolerance


def main() -> None:
    """Run the study and write its two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="streams of each matrix")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder for the files")
    arguments = parser.parse_args()
    blocks = []
    for number, matrix in enumerate(matrices.every()):
        blocks.append(study(matrix, arguments.seeds, number))
        print(matrix.name, flush=True)
    found = {
        "seeds": arguments.seeds,
        "stopped": len(range(0, arguments.seeds, _STOPPED)),
        "settings": SETTINGS,
        "tolerances": TOLERANCES,
        "matrices": blocks,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "coverage.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "coverage.md").write_text(report.markdown(found))


def study(matrix: matrices.Matrix, seeds: int, number: int) -> dict[str, Any]:
    """Run all streams of one matrix, and judge what they give.

    Args:
        matrix: The matrix.
        seeds: Its streams.
        number: Of the matrix, the seed of its streams.
    """
    found = streams.run(matrix, seeds, stops.STEPS, SINGLES, number)
    truth = stops.distribution(matrix)
    groups = [[(first + k) % seeds for k in range(stops.PROBES)] for first in range(seeds)]
    some = groups[::_STOPPED]
    kept = {str(t): [vars(stops.stop(matrix, truth, found, rows, t)) for rows in some] for t in TOLERANCES}
    return {
        "name": matrix.name,
        "numel": matrix.numel,
        "chosen_on": matrix.chosen_on,
        "bars": {f"{m},{s},{p}": _coverage(matrix, found, (m, s, p)) for m, s, p in SETTINGS},
        "stops": {tolerance: _kept(ends, float(tolerance)) for tolerance, ends in kept.items()},
        "fixed": float(np.median([stops.fixed(matrix, truth, found, rows) for rows in groups[:: stops.PROBES]])),
    }


def _coverage(matrix: matrices.Matrix, found: streams.Streams, setting: tuple[int, int, int]) -> dict[str, Any]:
    """Count, for each bar, how often it holds, its median width, and how often there is one."""
    every: dict[str, list[bars.Bar]] = defaultdict(list)
    for bar in _bars(matrix, found, setting):
        every[bar.name].append(bar)
    return {
        name: {
            "held": float(np.mean([bar.held for bar in several])),
            "width": float(np.median([bar.width for bar in several])),
            "count": len(several),
            "bound": several[0].bound,
        }
        for name, several in every.items()
    }


def _bars(matrix: matrices.Matrix, found: streams.Streams, setting: tuple[int, int, int]) -> Iterator[bars.Bar]:
    steps, singles, probes = setting
    for first in range(0, len(found.steps) - probes + 1, probes):
        rows = list(range(first, first + probes))
        yield from bars.scalar_bars(matrix, streams.spectrum(matrix, found, rows, steps, singles))


def _kept(ends: list[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    """Count how many blocks reached a tolerance, and how many of these kept it."""
    reached = [end for end in ends if end["reached"]]
    kept = [end["error"] <= tolerance for end in reached]
    medians = {name: float(np.median([end[name] for end in ends])) for name in ("steps", "probes", "products", "error")}
    worst = max((end["error"] for end in reached), default=0.0)
    return {"reached": len(reached), "kept": int(np.sum(kept)), "worst": worst, **medians}


if __name__ == "__main__":
    main()
