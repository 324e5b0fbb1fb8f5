"""Reorthogonalisation against the read bandwidth of this machine; pytest or plain python runs it."""

from __future__ import annotations

import statistics

import pytest
import torch
from floors import ReadFloor, basis_streams
from timing import CPU, seconds, waiting

from hvp_engine.kernels.reorthogonalize import reorthogonalize

READS = 3  # of the basis, in one call
CASES = [(100, 147_456, 6), (50, 147_456, 25), (100, 590_000, 4), (50, 19_000_000, 1), (100, 8_000, 50)]


def ratios(count: int, n: int, blocks: int, rounds: int = 5, device: torch.device = CPU) -> dict[str, float]:
    """Time fp32, bf16 and the floor alternately; return medians over the rounds."""
    torch.set_num_threads(2)
    floor = ReadFloor(device)
    streams = {dtype: basis_streams(count, n, blocks, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    shares, speedups, bandwidths = [], [], []
    for _ in range(rounds + 1):
        single = seconds(lambda: reorthogonalize(*streams[torch.float32]), device)
        half = seconds(lambda: reorthogonalize(*streams[torch.bfloat16]), device)
        bandwidths.append(floor.bandwidth())
        shares.append(READS * sum(basis.nbytes for basis in streams[torch.float32][0]) / single / bandwidths[-1])
        speedups.append(single / half)
    return {
        "floor_gb_per_s": statistics.median(bandwidths[1:]) / 1e9,
        "share_of_floor": statistics.median(shares[1:]),
        "bf16_speedup": statistics.median(speedups[1:]),
    }


@pytest.mark.parametrize(("count", "n", "blocks"), CASES)
def test_reorthogonalize(benchmark, device, count, n, blocks):
    """Record the share of the read floor and the gain of a bf16 basis."""
    benchmark.extra_info.update(ratios(count, n, blocks, rounds=3, device=device))
    streams = basis_streams(count, n, blocks, torch.float32, device)
    benchmark.pedantic(waiting(lambda: reorthogonalize(*streams), device), rounds=3)


if __name__ == "__main__":
    for case in CASES:
        found = ", ".join(f"{name} {value:.2f}" for name, value in ratios(*case).items())
        print(f"{case[0]} rows, {case[2]} x {case[1]}: {found}", flush=True)
