"""Stage 5: products of GPT-2 with 124 million parameters in bf16, where their time goes, and what others take."""

from __future__ import annotations

from functools import partial

import torch
from baselines.paper import PaperHessian
from jobs import Job
from timing import alternate, peak_gib

from hvp_engine.system.failures import is_out_of_memory

from .clock import Clock, free, tried
from .families import by_family
from .gpt_products import Engine, Taken, depths, emit_rates, gpt_on, measure, measure_expert, plain_arithmetic
from .measuring import profile
from .runner import Emit

SECONDS = 56.0


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure the engine, then profile it, then the others."""
    clock = Clock(SECONDS)
    free()
    job = gpt_on(device, "tiny" if small else "gpt2")
    blocks = depths(job.model.config)
    engine = Engine(job, blocks, "bf16")
    emit(what="operator, bf16", s=engine.seconds, **engine.facts())
    taken = measure(emit, clock, engine, seconds_of_one=3.0)
    first, *_, last = blocks
    for name in (first, last):
        with tried(emit, f"profile, {name}"):
            _profile(emit, engine, name, taken)
    del engine
    free()
    with tried(emit, "expert, bf16"):
        measure_expert(emit, clock, job, list(blocks), "bf16")
    if clock.has(5.0):
        with tried(emit, "published way, bf16"):
            _published(emit, job, first)
    if clock.has(4.0):
        emit_rates(emit, job, blocks, "bf16", taken)


def _profile(emit: Emit, engine: Engine, block: str, taken: dict[str, Taken]) -> None:
    """Emit how a product divides into families of kernels, and how long the device waits for the host."""
    vectors = engine.vectors(block)
    engine.operator.scheduler.release()  # what is compiled goes with its graph
    engine.operator.sweep(vectors)
    found = profile(lambda: engine.operator.sweep(vectors), engine.device)
    emit(
        what=f"profile, {block}",
        launches=found.launches,
        span_ms=found.span_us / 1e3,
        busy_ms=found.busy_us / 1e3,
        idle_share=1 - found.busy_us / found.span_us,  # the profiler slows the host down
        idle_share_without=1 - found.busy_us / (1e6 * taken[block].passes) if block in taken else 0.0,
    )
    for name, (us, launches) in by_family(found.ran, engine.job.model.config.vocabulary).items():
        emit(what=f"profile, {block}, {name}", ms=us / 1e3, launches=launches, share=us / found.busy_us)


def _published(emit: Emit, job: Job, block: str) -> None:
    """Emit a sweep over one block as the released code does it, with the largest batch that fits."""
    vectors = {block: torch.randn(job.model.get_parameter(job.blocks[block]).numel(), dtype=torch.float64)}
    samples = job.data[0].shape[0]
    while samples:
        try:
            with plain_arithmetic("bf16") as loss:
                published = PaperHessian(job.model, loss, [job.data[0][:samples]], job.blocks)
                call = partial(published.sweep, vectors)
                taken = alternate({"": call}, 1, device=job.data[0].device)[""]
                peak = peak_gib(call, job.data[0].device)
            emit(what=f"published way, graph and {block}, bf16", ms=1e3 * taken, peak_gib=peak, samples=samples)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        emit(what="published way, bf16: out of memory", samples=samples)
        torch.cuda.empty_cache()
        samples //= 2
