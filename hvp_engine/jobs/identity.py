"""Which job it is, and how it ran: what a run folder is known by, and what its manifest says beside the numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from hvp_engine.blocks import BlockPart, Partition
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem.objective import Objective
from hvp_engine.system.versions import versions


def describe_blocks(partition: Partition) -> dict[str, list[str]]:
    """Put the blocks into words that two runs can compare."""
    return {name: [_describe(part) for part in block.parts] for name, block in partition.blocks.items()}


def digests(objective: Objective) -> dict[str, Any]:
    """Hash the parameters and the data, and take the loss of the first batch (it stands for the loss function)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in objective.parameters.items():
        digest.update(name.encode())
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    first: float | None = None
    for number, batch in objective.batches():
        if number == 0:
            first = objective.spot_value(batch)
    return {"parameters": digest.hexdigest(), "data": objective.data_digest, "first_loss": first}


def facts(operator: CurvatureOperator, waves: int) -> dict[str, Any]:
    """Say how a finished job ran, whatever was asked for."""
    return {
        "versions": versions(),
        "device": str(operator.device),
        "threads": torch.get_num_threads(),
        "notes": list(operator.notes),
        "fused_operations": sorted(operator.objective.fused.replaced),
        "plan": {**operator.scheduler.plan.record(), "head_curvature": operator.head_curvature, "waves": waves},
    }


def _describe(part: BlockPart) -> str:
    if part.index is None:
        return part.parameter
    if isinstance(part.index, Tensor):
        digest = hashlib.blake2b(part.index.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return f"{part.parameter}[{part.index.numel()} indices, {digest}]"
    return f"{part.parameter}[{part.index}]"
