"""Sweeps over the paper's 25 blocks against the paper's way and an expert's loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from baselines.best_practice import BestPracticeHessian
from baselines.paper import PaperHessian
from jobs import Job, gpt_job, mean_loss
from timing import alternate
from torch import Tensor, nn

import hvp_engine as he

from .networks import relative
from .products import settled
from .table import Row, Target

STEPS = 100  # Lanczos steps of the job with head curvature
MOST_ROUNDS = 3  # of what takes many seconds a turn
TARGETS = {"fp32": (Target(5.5), Target(12.0)), "bf16": (Target(12.0), Target(25.0))}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 numbers."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, product in wanted.items():
        if (error := relative(found[name][0], product)) > tolerance:
            raise SystemExit(f"Our product with {name} is wrong by {error:.1e}.")


def sweep(size: str, rounds: int) -> Iterator[Row]:
    """Time a sweep against the paper's way and an expert's loop."""
    job = gpt_job(size)
    vectors = job.vectors()
    engine = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, data=job.data)
    paper, expert = (kind(job.model, mean_loss, job.data, job.blocks) for kind in (PaperHessian, BestPracticeHessian))
    stacked = {name: vector[None] for name, vector in vectors.items()}
    doubles = {name: vector.double() for name, vector in vectors.items()}
    _check(engine.matmat(stacked), expert.sweep(vectors), TOLERANCE["fp32"])
    medians = settled(
        {
            "ours": lambda: engine.matmat(stacked),
            "paper": lambda: paper.sweep(doubles),
            "expert": lambda: expert.sweep(vectors),
        },
        rounds,
    )
    ours = medians["ours"]
    yield Row("sweep over 25 blocks", size, ours, medians["paper"], "the paper's way", Target(10.0))
    yield Row("sweep over 25 blocks", size, ours, medians["expert"], "an expert's loop", Target(7.0))


def long_job(size: str, precision: Any, rounds: int) -> Iterator[Row]:
    """Time a sweep without head curvature, and 100 steps with it, its forming counted, against the paper's way."""
    job = gpt_job(size)
    vectors = job.vectors()
    paper = PaperHessian(job.model, mean_loss, job.data, job.blocks)
    stacked = {name: vector[None] for name, vector in vectors.items()}
    doubles = {name: vector.double() for name, vector in vectors.items()}
    engine = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, data=job.data, precision=precision)
    exact = paper.sweep(doubles)
    methods = {"ours": lambda: engine.matmat(stacked), "paper": lambda: paper.sweep(doubles)}
    without, with_head = TARGETS[precision]
    name, rounds = f"{size} sweep, {precision}", min(rounds, MOST_ROUNDS)
    _check(engine.matmat(stacked), exact, TOLERANCE[precision])
    medians = alternate(methods, rounds, warm_up=False)
    yield Row(name, "without head curvature", medians["ours"], medians["paper"], "the paper's way in fp32", without)
    started = time.perf_counter()
    engine.form_head_curvature(dict.fromkeys(job.patterns, STEPS), progress=False)
    forming = time.perf_counter() - started
    _check(engine.matmat(stacked), exact, TOLERANCE[precision])
    medians = alternate(methods, rounds, warm_up=False)
    note = f"head curvature {engine.head_curvature}, formed in {forming:.1f} s; a sweep takes {medians['ours']:.2f} s"
    ours, theirs = forming + STEPS * medians["ours"], STEPS * medians["paper"]
    yield Row(
        name, f"with head curvature, {STEPS} steps", ours, theirs, "the paper's way in fp32", with_head, {}, [note]
    )


def _plain_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


def head_in_bf16(job: Job) -> str:
    """Say what becomes of a loss that is written plainly, in bf16."""
    engine = he.HessianOperator(job.model, _plain_loss, job.patterns, data=job.data, precision="bf16")
    engine.form_head_curvature(dict.fromkeys(job.patterns, STEPS), progress=False)
    found = "found" if engine.head is not None else "not found"
    return f"bf16 with F.cross_entropy(logits.view(-1, V), targets): head {found}, curvature {engine.head_curvature}"
