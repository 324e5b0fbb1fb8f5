"""What bf16 products cost in accuracy: of each block's product, and of its spectrum."""

from __future__ import annotations

import torch
from jobs import gpt_job

import hvp_engine as he
from hvp_engine.distances import wasserstein

STEPS = 20


def test_bf16_against_fp32(benchmark, size):
    """Records the largest relative error of a product, and the largest Wasserstein-1 distance of two spectra.

    Both over all blocks; distances are shares of the fp32 spectrum's range, from 0 where that is positive.
    """
    torch.set_num_threads(2)
    job = gpt_job(size)
    stacked = {name: vector[None] for name, vector in job.vectors().items()}
    products, spectra = {}, {}
    for precision in ("fp32", "bf16"):
        options = {"data": job.data, "precision": precision}
        engine = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, **options)
        products[precision] = engine.matmat(stacked)
        spectra[precision] = he.slq(
            job.model, he.losses.causal_lm, job.patterns, steps=STEPS, probes=1, progress=False, **options
        )
    errors = {n: float((a - products["bf16"][n]).norm() / a.norm()) for n, a in products["fp32"].items()}
    shares = {}
    for name in spectra["fp32"]:
        pair = [run[name] for run in spectra.values()]
        low, high = pair[0].extremes()
        shares[name] = float(wasserstein(pair)[0, 1]) / (max(high, 0.0) - min(low, 0.0))
    benchmark.extra_info.update(
        size=size,
        steps=STEPS,
        largest_product_error=max(errors.values()),
        largest_spectrum_distance=max(shares.values()),
        **{f"product {n}": e for n, e in errors.items()},
        **{f"spectrum {n}": s for n, s in shares.items()},
    )
    benchmark.pedantic(engine.matmat, (stacked,), rounds=1)
