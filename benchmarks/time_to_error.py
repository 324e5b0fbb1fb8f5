"""Time to the error of ten probes times a hundred steps: the paper's way against `slq` with a tolerance.

    python benchmarks/time_to_error.py --size medium --rounds 3

Both ways run in turn. The paper's takes ten times a hundred sweeps over the blocks, each of them as long as the one
that is timed: extrapolated, without the time of its Lanczos vectors. Ours is the whole call, checks and graphs
included. Which tolerance has the error of ten times a hundred is what `benchmarks/real_blocks` finds out.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from baselines.paper import PaperHessian
from jobs import SIZES, gpt_job, mean_loss
from results import machine
from timing import seconds

import hvp_engine as he

PAPER_SWEEPS = 10 * 100


def main() -> None:
    """Time both in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="medium", choices=SIZES)
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = gpt_job(options.size)
    paper = PaperHessian(job.model, mean_loss, job.data, job.blocks)
    vectors = {name: vector.double() for name, vector in job.vectors().items()}
    spent: list[int] = []

    def ours() -> None:
        spectra = he.slq(
            job.model,
            he.losses.causal_lm,
            job.patterns,
            data=job.data,
            tolerance=options.tolerance,
            precision="fp32",
            progress=False,
        )
        spent.append(sum(int(s.steps.sum()) + len(s.singles) for s in spectra.values()))

    print(", ".join(f"{key} {value}" for key, value in machine(torch.device("cpu")).items()))
    sweeps, calls = [], []
    for turn in range(options.rounds):
        sweeps.append(seconds(lambda: paper.sweep(vectors)))
        calls.append(seconds(ours))
        print(f"turn {turn + 1}: a sweep of the paper's way {sweeps[-1]:.2f} s, slq {calls[-1]:.1f} s", flush=True)
    theirs, our = PAPER_SWEEPS * statistics.median(sweeps), statistics.median(calls)
    products = PAPER_SWEEPS * len(job.blocks)
    print(
        f"medians of {options.rounds}: {theirs:.0f} s for {products:,} products by the paper's way (extrapolated), "
        f"{our:.1f} s for {spent[-1]:,} by slq(tolerance={options.tolerance:g}): {theirs / our:.0f} times faster."
    )


if __name__ == "__main__":
    main()
