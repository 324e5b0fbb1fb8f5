"""End to end: `slq` on the paper's blocks of a job, in Lanczos steps of all streams per second."""

from __future__ import annotations

import pytest
import torch
from jobs import gpt_job
from timing import peak_gib, seconds

import hvp_engine as he

STEPS, PROBES = 5, 2


@pytest.mark.parametrize("basis", ["fp32", "bf16"])
def test_slq(benchmark, size, device, basis):
    """Record steps per second, graphs and the head's curvature included, and the peak of memory."""
    torch.set_num_threads(2)
    job = gpt_job(size, device)

    def run() -> he.Spectra:
        return he.slq(
            job.model,
            he.losses.causal_lm,
            job.patterns,
            data=job.data,
            steps=STEPS,
            probes=PROBES,
            basis=basis,
            check=False,
            progress=False,
        )

    if device.type == "cuda":
        run()  # compiles the kernels
    peak = peak_gib(lambda: benchmark.extra_info.update(seconds=seconds(run, device)), device)
    taken = benchmark.extra_info["seconds"]
    streams = len(job.blocks) * PROBES
    benchmark.extra_info.update(size=size, streams=streams, steps_per_s=STEPS / taken, peak_gib=peak)
    benchmark.pedantic(run, rounds=1)
