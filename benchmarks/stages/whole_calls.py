"""Stage 3: whole calls on a small GPT against fp64 on the CPU, off the default stream, and without hidden waits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from jobs import gpt_job
from validation import products
from validation.compare import worst
from validation.report import Check

import hvp_engine as he
from hvp_engine.kernels.registry import available_backends

from .checked import Checks
from .runner import Emit


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Check the backends that the device has, the first choice with everything."""
    checks = Checks(emit)
    first, *others = available_backends(device)[:-1] or ["torch"]
    for precision in ("fp32", "bf16", "fp64", "tf32"):
        checks.take(f"hvp, {precision}", partial(products.check_hvp, device, first, (precision,)))
    checks.take("slq", partial(products.check_slq, device, first))
    if device.type == "cuda":
        checks.take("another stream", partial(_off_the_default_stream, device))
    checks.take("waits of blocks", partial(_waits, device))
    for backend in others:
        checks.take(f"hvp, {backend}", partial(products.check_hvp, device, backend, ("fp32",)))
        checks.take(f"slq, {backend}", partial(products.check_slq, device, backend))
    checks.verdict()


def _products(device: torch.device) -> dict[str, torch.Tensor]:
    job = gpt_job("tiny", device)
    vectors = {name: vector[None] for name, vector in job.vectors().items()}
    return he.hvp(job.model, he.losses.causal_lm, vectors, job.patterns, data=job.data)


def _off_the_default_stream(device: torch.device) -> Iterator[Check]:
    """Check that the bits are the same, whichever stream is current."""
    usual = _products(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        found = _products(device)
    stream.synchronize()
    differing = sum(not torch.equal(found[name], usual[name]) for name in usual)
    yield Check("hvp on another stream, blocks with other bits", differing, 0)
    yield Check("hvp on another stream", *worst((found[name], usual[name], usual[name].double()) for name in usual))


def _waits(device: torch.device) -> Iterator[Check]:
    """Check whether the host waits for the device in a product on a kept graph, block by block."""
    job = gpt_job("tiny", device)
    for block, vector in job.vectors().items():
        operator = he.HessianOperator(job.model, he.losses.causal_lm, {block: job.patterns[block]}, data=job.data)
        stacked = {block: vector[None]}
        for _ in range(products.WARM):
            operator.sweep(stacked)
        with products.waits_are_errors(device) as waited:
            operator.sweep(stacked)  # not matmat, which looks whether vectors are finite
        name = f"a product with {block} waits for the device"
        yield Check(name, float(bool(waited)), 0, "; ".join(waited), fatal=False)
