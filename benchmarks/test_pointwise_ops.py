"""Normalisation and activations against PyTorch: forward, backward and the second backward of each.

Run as a script for a table of ratios timed alternately, with the bandwidth that each pass reaches:
`python benchmarks/test_pointwise_ops.py [cpu|cuda]`; or under pytest-benchmark for absolute times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from op_cases import CASES, PASSES, Pass, copy_bandwidth, passes
from timing import alternate, waiting

SIZES = [(1024, 384), (4096, 768), (1024, 3072)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stage", PASSES)
@pytest.mark.parametrize("library", ["hvp_engine", "torch"])
def test_pass_of_a_pointwise_operation(
    benchmark: Callable[[Pass], object], device: torch.device, name: str, stage: str, library: str
) -> None:
    """Time one pass of one operation."""
    make, ours, theirs, _ = CASES[name]
    run = passes(ours if library == "hvp_engine" else theirs, make((1024, 768), device))
    benchmark(waiting(run[PASSES.index(stage)], device))


def main(device: torch.device) -> None:
    """Print one line per operation, size and pass."""
    torch.set_num_threads(2)
    print("operation   size          pass             ours us  torch us  ratio   GB/s  add GB/s")
    for size in SIZES:
        bandwidth = copy_bandwidth(size[0] * size[1], device)
        for name, (make, ours, theirs, arrays) in CASES.items():
            args = make(size, device)
            runs = zip(PASSES, passes(ours, args), passes(theirs, args), arrays, strict=True)
            for label, mine, other, moved in runs:
                taken = alternate({"ours": mine, "torch": other}, 13, device=device)
                rate = 4 * moved * size[0] * size[1] / taken["ours"]
                print(
                    f"{name:<12}{size!s:<14}{label:<15}{taken['ours'] * 1e6:>9.0f}{taken['torch'] * 1e6:>10.0f}"
                    f"{taken['torch'] / taken['ours']:>7.2f}{rate / 1e9:>7.1f}{bandwidth / 1e9:>10.1f}"
                )


if __name__ == "__main__":
    main(torch.device(*sys.argv[1:2] or ["cpu"]))
