"""What bf16 products gain and cost: a sweep against the paper's way in fp32, the error of products and of spectra."""

from __future__ import annotations

import torch
from baselines.paper import PaperHessian
from jobs import gpt_job, mean_loss
from timing import alternate

import hvp_engine as he
from hvp_engine.results.distances import wasserstein

STEPS = 20


def test_bf16_sweep_against_the_papers_way(benchmark, size):
    """Record the gain of a bf16 sweep over the paper's in fp32, head curvature off, and the largest relative error."""
    torch.set_num_threads(2)
    job = gpt_job(size)
    vectors = job.vectors()
    engine = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, data=job.data, precision="bf16")
    paper = PaperHessian(job.model, mean_loss, job.data, job.blocks)
    stacked = {name: vector[None] for name, vector in vectors.items()}
    doubles = {name: vector.double() for name, vector in vectors.items()}
    found, exact = engine.matmat(stacked), paper.sweep(doubles)
    errors = {name: float((found[name][0] - exact[name]).norm() / exact[name].norm()) for name in vectors}
    medians = alternate(
        {"engine": lambda: engine.matmat(stacked), "paper": lambda: paper.sweep(doubles)}, rounds=2, warm_up=False
    )
    benchmark.extra_info.update(
        size=size,
        sweep_times_faster_than_paper=medians["paper"] / medians["engine"],
        largest_relative_error=max(errors.values()),
    )
    benchmark.pedantic(engine.matmat, (stacked,), rounds=1)


def test_bf16_spectra_against_those_of_fp32(benchmark, size):
    """Record the largest Wasserstein-1 distance of a block's two spectra, as a share of the fp32 one's range."""
    torch.set_num_threads(2)
    job = gpt_job(size)

    def run(precision: str) -> he.Spectra:
        options = {"data": job.data, "steps": STEPS, "probes": 1, "precision": precision, "progress": False}
        return he.slq(job.model, he.losses.causal_lm, job.patterns, **options)

    wide, narrow = run("fp32"), benchmark.pedantic(run, ("bf16",), rounds=1)
    shares = {}
    for name in wide:
        low, high = wide[name].extremes()
        shares[name] = float(wasserstein([wide[name], narrow[name]])[0, 1]) / (max(high, 0.0) - min(low, 0.0))
    benchmark.extra_info.update(size=size, steps=STEPS, largest_share=max(shares.values()))
