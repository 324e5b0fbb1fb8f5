"""The whole job with head curvature, its forming counted, against the paper's way; and how exact products are."""

from __future__ import annotations

import time

import pytest
import torch
from baselines.paper import PaperHessian
from jobs import gpt_job, mean_loss
from timing import alternate

import hvp_engine as he

STEPS = 100


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_job_with_head_curvature(benchmark, size, precision):
    """Extrapolate 100 steps of every block from a few sweeps of either side; forming is measured whole."""
    torch.set_num_threads(2)
    job = gpt_job(size)
    patterns = {name: [target] for name, target in job.blocks.items()}
    engine = he.HessianOperator(job.model, he.losses.causal_lm, patterns, data=job.data, precision=precision)
    paper = PaperHessian(job.model, mean_loss, job.data, job.blocks)
    vectors = job.vectors()
    stacked = {name: vector[None] for name, vector in vectors.items()}
    doubles = {name: vector.double() for name, vector in vectors.items()}
    started = time.perf_counter()
    engine.form_head_curvature(dict.fromkeys(patterns, STEPS), progress=False)
    forming = time.perf_counter() - started
    products, exact = engine.matmat(stacked), paper.sweep(doubles)
    errors = [float((products[n][0] - exact[n]).norm() / exact[n].norm()) for n in vectors]
    assert max(errors) < (1e-4 if precision == "fp32" else 2e-2)
    medians = alternate(
        {"engine": lambda: engine.matmat(stacked), "paper": lambda: paper.sweep(doubles)}, rounds=2, warm_up=False
    )
    benchmark.extra_info.update(
        size=size,
        precision=precision,
        head_curvature=engine.head_curvature,
        forming_s=forming,
        sweep_times_faster_than_paper=medians["paper"] / medians["engine"],
        job_times_faster_than_paper_extrapolated=STEPS * medians["paper"] / (forming + STEPS * medians["engine"]),
        largest_relative_error=max(errors),
    )
    benchmark.pedantic(engine.matmat, (stacked,), rounds=1)
