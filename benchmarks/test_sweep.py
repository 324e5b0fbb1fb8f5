"""A sweep over the paper's blocks: the engine against re-implementations of what others do, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from baselines.best_practice import BestPracticeHessian
from baselines.paper import PaperHessian
from baselines.per_vector import PerVectorHessian
from jobs import gpt_job, mean_loss
from timing import alternate, peak_gib, waiting

import hvp_engine as he

THREADS = 2


def test_sweep_against_baselines(benchmark, size, device):
    """Record how many times longer (a) the paper's way, (b) one graph per vector and (c) the expert's loop take."""
    torch.set_num_threads(THREADS)
    job = gpt_job(size, device)
    vectors = job.vectors()
    engine = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, data=job.data)
    paper, single, expert = (
        kind(job.model, mean_loss, job.data, job.blocks)
        for kind in (PaperHessian, PerVectorHessian, BestPracticeHessian)
    )
    stacked = {name: vector[None] for name, vector in vectors.items()}
    doubles = {name: vector.double() for name, vector in vectors.items()}
    # One early and one late block stand for (b), which shares nothing between blocks: its time adds up.
    few = {name: vectors[name] for name in (list(vectors)[1], list(vectors)[-1])}
    found, wanted = engine.matmat(stacked), expert.sweep(vectors)
    for name in vectors:
        error = float((found[name][0] - wanted[name]).norm() / wanted[name].norm())
        assert error < 1e-4, (name, error)
    medians = alternate(
        {
            "engine": lambda: engine.matmat(stacked),
            "a": lambda: paper.sweep(doubles),
            "b": lambda: single.sweep(few),
            "c": lambda: expert.sweep(vectors),
        },
        rounds=3 if size == "laptop" else 2,
        warm_up=size == "laptop" or device.type == "cuda",
        device=device,
    )
    benchmark.extra_info.update(
        size=size,
        blocks=len(vectors),
        times_faster_than_paper=medians["a"] / medians["engine"],
        times_faster_than_per_vector=medians["b"] / len(few) * len(vectors) / medians["engine"],
        times_faster_than_expert=medians["c"] / medians["engine"],
    )
    if device.type == "cuda":
        benchmark.extra_info.update(
            engine_peak_gib=peak_gib(lambda: engine.matmat(stacked), device),
            expert_peak_gib=peak_gib(lambda: expert.sweep(vectors), device),
        )
    benchmark.pedantic(waiting(lambda: engine.matmat(stacked), device), rounds=1)


MEMORY = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(2)
from baselines.best_practice import BestPracticeHessian
from jobs import gpt_job, mean_loss
from timing import process_peak_gib
import hvp_engine as he
job = gpt_job(sys.argv[3])
if sys.argv[2] == "engine":
    blocks = {name: [target] for name, target in job.blocks.items()}
    he.slq(job.model, he.losses.causal_lm, blocks, data=job.data, steps=3, probes=1)
else:
    expert = BestPracticeHessian(job.model, mean_loss, job.data, job.blocks)
    vectors = job.vectors()
    for _ in range(3):
        vectors = {name: v / v.norm() for name, v in expert.sweep(vectors).items()}
print(json.dumps(process_peak_gib()))
"""


def test_peak_memory_of_the_job(benchmark, size):
    """Peak resident memory (GiB) of three Lanczos steps, against the same of the expert's loop without Lanczos."""

    def peak(who: str) -> float:
        command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), who, size]
        return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    expert = peak("expert")
    engine = benchmark.pedantic(peak, ("engine",), rounds=1)
    benchmark.extra_info.update(size=size, engine_gib=engine, expert_gib=expert)
