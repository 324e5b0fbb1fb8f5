"""Whether the 95 % bars of real blocks hold: those of one block, and those between the blocks of a network.

The blocks are those whose eigenvalues are all known; streams and single products are in their eigenbasis, and what is
looked at is what the study of known matrices (`benchmarks/coverage`) looks at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.coverage.bars import Bar, scalar_bars, shape_bars
from benchmarks.coverage.matrices import Matrix
from benchmarks.coverage.pairs import Truth, pair_bars
from benchmarks.coverage.streams import Streams as Known
from benchmarks.coverage.streams import spectrum
from hvp_engine.results.spectrum import Spectrum

from .streams import EXACT_PROBES, exact, in_eigenbasis
from .zoo import Network

# Steps, single products and probes of what is judged.
SETTINGS = ((30, 0, 1), (50, 4, 1), (50, 0, 3))


def coverage(network: Network, cache: Path) -> list[dict[str, object]]:
    """Return a row per setting and block, and one for the pairs of blocks: how often each bar holds."""
    matrices = {
        name: Matrix(f"{network.name} {name}", values, np.ones(values.size, dtype=np.int64))
        for name, values in exact(network, cache).items()
    }
    streams = {name: in_eigenbasis(network, cache, name, matrix.values) for name, matrix in matrices.items()}
    rows = []
    for setting in SETTINGS:
        for name, matrix in matrices.items():
            bars = [bar for group in _groups(setting[2]) for bar in _of_block(matrix, streams[name], group, setting)]
            rows.append(_row(network, name, matrix.numel, setting, bars))
        if len(matrices) > 1:
            truth, pairs = Truth(list(matrices.values())), []
            for group in _groups(setting[2]):
                found = [_spectrum(matrix, streams[name], group, setting) for name, matrix in matrices.items()]
                pairs += list(pair_bars(truth, found))
            rows.append(_row(network, "pairs", min(m.numel for m in matrices.values()), setting, pairs))
    return rows


def _groups(probes: int) -> list[list[int]]:
    return [list(range(first, first + probes)) for first in range(0, EXACT_PROBES - probes + 1, probes)]


def _spectrum(matrix: Matrix, streams: Known, group: list[int], setting: tuple[int, int, int]) -> Spectrum:
    return spectrum(matrix, streams, group, setting[0], setting[1])


def _of_block(matrix: Matrix, streams: Known, group: list[int], setting: tuple[int, int, int]) -> Iterator[Bar]:
    found = _spectrum(matrix, streams, group, setting)
    yield from scalar_bars(matrix, found)
    yield from shape_bars(matrix, found)


def _row(network: Network, block: str, numel: int, setting: tuple[int, int, int], bars: list[Bar]) -> dict[str, object]:
    held, widths = defaultdict(list), defaultdict(list)
    for bar in bars:
        held[bar.name].append(bar.held)
        widths[bar.name].append(bar.width)
    return {
        "network": network.name,
        "block": block,
        "numel": numel,
        "setting": setting,
        "held": {name: float(np.mean(several)) for name, several in held.items()},
        "width": {name: float(np.median(several)) for name, several in widths.items()},
        "count": {name: len(several) for name, several in held.items()},
        "bound": [name for name in held if any(bar.bound for bar in bars if bar.name == name)],
    }
