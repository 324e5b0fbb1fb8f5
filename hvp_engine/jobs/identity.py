"""Which job it is, and how it ran: what a run folder is known by, and what its manifest says beside the numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from hvp_engine.blocks import BlockPart, Partition
from hvp_engine.jobs.description import describe_function, describe_hooks, describe_modules, digest_of
from hvp_engine.jobs.environment import environment
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.krylov.probes import probe
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.system.phases import phase


def describe_blocks(partition: Partition) -> dict[str, list[str]]:
    """Put the blocks into words that two runs can compare."""
    return {name: [_describe(part) for part in block.parts] for name, block in partition.blocks.items()}


@phase("hashing the model")
def describe(operator: CurvatureOperator) -> dict[str, Any]:
    """Return what a job is about as plain data: model, data, and the loss by its code."""
    objective = operator.objective
    model = objective.model
    diagonal = operator.preconditioner
    scales = {} if diagonal is None else {name: digest_of(scale) for name, scale in diagonal.scales.items()}
    return {
        "modules": describe_modules(model),
        "hooks": describe_hooks(model),
        "parameters": {name: digest_of(parameter) for name, parameter in objective.parameters.items()},
        **({"precondition": scales} if scales else {}),  # runs of before there were any have no word of it
        "buffers": {name: digest_of(buffer) for name, buffer in model.named_buffers()},
        "data": objective.data_digests,
        "loss": describe_function(objective.loss),
        "environment": environment(operator),
    }


def values(operator: CurvatureOperator) -> dict[str, Any]:
    """Return what the loss function does, as plain data: one forward pass over the data, and a few products.

    Its code may be written in many ways, and calls other code; its values for all batches say what it is. What a
    backward pass does that someone wrote shows in no value, but in a product per block with the first micro-batch.
    """

    def vector(block: str) -> Tensor:
        drawn = probe(0, block, 0, operator.numel[block], "rademacher", operator.dtype)
        return drawn.to(operator.device)[None]

    scheduler = operator.scheduler
    with retained_heap():
        return {
            "losses": scheduler.within_memory(lambda: _losses(operator)),
            "products": scheduler.within_memory(partial(_norms, operator, vector)),
        }


@phase("multiplying by every block once")
def _norms(operator: CurvatureOperator, vector: Callable[[str], Tensor]) -> dict[str, float]:
    return operator.scheduler.first_norms(vector)


def facts(operator: CurvatureOperator, waves: int) -> dict[str, Any]:
    """Say how a finished job ran, whatever was asked for."""
    return {
        **environment(operator),
        "notes": list(operator.notes),
        "fused_operations": sorted(operator.objective.fused.replaced),
        "plan": {
            **operator.scheduler.plan.record(),
            "head_curvature": operator.head_curvature,
            "uncompiled": operator.uncompiled,
            "waves": waves,
        },
    }


def _losses(operator: CurvatureOperator) -> list[list[float]]:
    """Return total and weight of every batch, evaluated in the pieces that the sweeps take."""
    sums: dict[int, list[float]] = {}
    objective = operator.objective
    count = len(objective.data_digests) or 1
    # Gradients are on: a loss may need some inside.
    with objective.arithmetic(), phase("evaluating the loss on all data") as now:
        for micro in operator.scheduler.microbatches():
            now.reach(micro.key[0] / count)
            total, weight = objective.evaluate(micro.batch)
            batch = sums.setdefault(micro.key[0], [0.0, 0.0])
            batch[0] += float(total.detach())
            batch[1] += weight
            del total
    return list(sums.values())


def _describe(part: BlockPart) -> str:
    if part.index is None:
        return part.parameter
    if isinstance(part.index, Tensor):
        digest = hashlib.blake2b(part.index.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return f"{part.parameter}[{part.index.numel()} indices, {digest}]"
    return f"{part.parameter}[{part.index}]"
