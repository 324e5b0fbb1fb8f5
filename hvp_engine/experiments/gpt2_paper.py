"""The job of "Why Transformers Need Adam" (arXiv 2402.16788) on GPT-2, without weights: what it costs, then and now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.blocks import resolve
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.experiments.published import PublishedCounts, published_counts
from hvp_engine.planning.plan import plan
from hvp_engine.system.formatting import format_flop, format_time

CONFIG = GPTConfig(vocabulary=50_304, context=1024, layers=12, heads=12, width=768)
MICROBATCH = 8
MICROBATCHES = 60  # of 8 x 1,024 tokens: 491,520
STEPS = 100
PROBES = 10
BLOCKS = {**paper_blocks(CONFIG), "full": ["*"]}  # 25 and the full Hessian

JobArguments = tuple[nn.Module, Callable[..., Any], list[Tensor], dict[str, list[str]]]


def job() -> JobArguments:
    """Make model, loss, data and blocks on the meta device: shapes for the planner."""
    with torch.device("meta"):
        model = GPT(CONFIG).eval()
        data = [torch.empty(MICROBATCH, CONFIG.context, dtype=torch.int64) for _ in range(MICROBATCHES)]
    return model, losses.causal_lm, data, BLOCKS


def published() -> PublishedCounts:
    """Count the work of the released code on one micro-batch, for one step and probe."""
    model, loss, data, blocks = job()
    return published_counts(model, loss, data[0], resolve(model, blocks))


def main() -> None:
    """Print the released code's work and this engine's, and predicted hours on every precision of an A100."""
    counts = published()
    layers = [name for name in counts.blocks if name not in counts.separate]
    print("released code, per micro-batch, step and probe:")
    for label, works in (("to every parameter", counts.blocks), ("stopping at the block", counts.pruned)):
        flop = sum(works[name].flop for name in layers)
        print(f"  second backwards of {len(layers)} blocks, {label}: {format_flop(flop)}")
    print(f"  gradient graph: {format_flop(counts.gradient.flop)}; of the full Hessian's: as much again")
    print(f"  second backward of the full Hessian: {format_flop(sum(counts.blocks[n].flop for n in counts.separate))}")
    total = counts.flop * MICROBATCHES * STEPS * PROBES
    print(f"released code, whole job: {format_flop(total)}")
    model, loss, data, blocks = job()
    for precision in ("fp32", "tf32", "bf16"):
        for label, steps, probes in (("to a tolerance", None, None), ("as many products", STEPS, PROBES)):
            planned = plan(
                model, loss, blocks, data=data, device="a100-80gb", precision=precision, steps=steps, probes=probes
            )
            most = "" if planned.worst is None else f", {format_time(planned.worst.seconds)} at most"
            print(
                f"this engine, {label}, a100-80gb, {precision}, {planned.setting.basis} basis: predicted "
                f"{format_flop(planned.flop)}, {format_time(planned.seconds)}{most}"
            )


if __name__ == "__main__":
    main()
