"""Which job it is, and how it ran: what a run folder is known by, and what its manifest says beside the numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvp_engine.blocks import BlockPart, Partition
from hvp_engine.jobs.description import describe_hooks, describe_loss, describe_modules, digest_of
from hvp_engine.jobs.environment import environment
from hvp_engine.jobs.job import Job, ResultT, StateT
from hvp_engine.jobs.origin import origin
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.krylov.probes import probe
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.processes.team import ALONE, Team
from hvp_engine.system.phases import phase


def config_of(job: Job[StateT, ResultT], operator: CurvatureOperator) -> dict[str, Any]:
    """Return what was asked for: the kind of job, its settings and the blocks."""
    return {**_kind(job.name, operator.name), **job.config(), "blocks": describe_blocks(operator.partition)}


def describe_blocks(partition: Partition) -> dict[str, list[str]]:
    """Put the blocks into words that two runs can compare."""
    return {name: [_describe(part) for part in block.parts] for name, block in partition.blocks.items()}


@phase("hashing the model")
def describe(operator: CurvatureOperator) -> dict[str, Any]:
    """Return what a job is about as plain data: model, data, and the loss by its code.

    What it runs on is beside it (:func:`hvp_engine.jobs.environment.environment`), once that is decided.
    """
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
        "loss": describe_loss(objective.loss, objective.source, model),
    }


def values(operator: CurvatureOperator, team: Team = ALONE) -> dict[str, Any]:
    """Return what the loss function does, as plain data: one forward pass over the data, and a few products.

    Its code may be written in many ways, and calls other code; its values for all batches say what it is. What a
    backward pass does that someone wrote shows in no value, but in a product per block with the first micro-batch.

    Args:
        operator: Has the loss and the data.
        team: Processes that share the data.
    """
    scheduler = operator.scheduler
    with retained_heap():
        losses = scheduler.within_memory(lambda: _losses(operator))
        products = scheduler.within_memory(lambda: _first_norms(operator))
    parts = team.of_group(team.gathered(losses), 0)
    sums = {number: [sum(column) for column in zip(*of_batch, strict=True)] for number, of_batch in _joined(parts)}
    return {"losses": [sums[number] for number in sorted(sums)], "products": products}


def facts(operator: CurvatureOperator, waves: int) -> dict[str, Any]:
    """Say how a finished job ran, whatever was asked for."""
    return {
        **environment(operator),
        "origin": origin(operator.objective.model),
        "notes": list(operator.notes),
        "fused_operations": sorted(operator.objective.fused.replaced),
        "plan": {
            **operator.scheduler.plan.record(),
            "head_curvature": operator.head_curvature,
            "uncompiled": operator.uncompiled,
            "waves": waves,
        },
    }


def _kind(job: str, matrix: str) -> dict[str, str]:
    """Tell kinds of jobs apart; the first kind had no others beside it, and its run folders have no name of it."""
    named = {"job": job, "matrix": matrix}
    return {key: value for key, value in named.items() if value not in ("slq", "hessian")}


def _losses(operator: CurvatureOperator) -> dict[int, list[float]]:
    """Return total and weight of every batch that is this process's, evaluated in the pieces that the sweeps take."""
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
    return sums


def _joined(parts: Sequence[Mapping[int, list[float]]]) -> Iterable[tuple[int, list[list[float]]]]:
    """Bring together what processes have of each batch."""
    numbers = {number for part in parts for number in part}
    return ((number, [part[number] for part in parts if number in part]) for number in numbers)


@phase("multiplying by every block once")
def _first_norms(operator: CurvatureOperator) -> dict[str, float]:
    """Multiply by every block of the first micro-batch alone, and return the norms of the products."""
    norms: dict[str, float] = {}
    with operator.objective.arithmetic():
        graph = operator.scheduler.first_graph()
        for name, block in operator.partition.blocks.items():
            drawn = probe(0, name, 0, operator.numel[name], "rademacher", operator.dtype)
            vectors = drawn.to(operator.device)[None]
            out = torch.zeros_like(vectors)
            graph.product(block, vectors, out, batched=False)
            norms[name] = float(out.norm()) / graph.weight if graph.weight else 0.0
    return norms


def _describe(part: BlockPart) -> str:
    if part.index is None:
        return part.parameter
    if isinstance(part.index, Tensor):
        digest = hashlib.blake2b(part.index.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return f"{part.parameter}[{part.index.numel()} indices, {digest}]"
    return f"{part.parameter}[{part.index}]"
