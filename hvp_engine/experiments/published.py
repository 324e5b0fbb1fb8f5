"""The work of the code released with arXiv 2402.16788, to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvp_engine.blocks import Partition
from hvp_engine.planning.counting import evaluate
from hvp_engine.planning.meter import Meter, Work
from hvp_engine.problem.objective import Loss


@dataclass(frozen=True)
class PublishedCounts:
    """Work of one micro-batch, one step and one probe.

    Attributes:
        gradient: The gradient graph, forward pass included.
        blocks: Per block, the second backward pass to every parameter of the model.
        pruned: Per block, the same pass stopping at the block.
        separate: Blocks that hold every parameter: each is a run of its own, with a graph of its own.
    """

    gradient: Work
    blocks: dict[str, Work]
    pruned: dict[str, Work]
    separate: frozenset[str]

    @property
    def flop(self) -> float:
        """All of it."""
        graphs = len(self.separate) + (len(self.separate) < len(self.blocks))
        return graphs * self.gradient.flop + sum(work.flop for work in self.blocks.values())


def published_counts(model: nn.Module, loss: Loss, batch: Any, partition: Partition) -> PublishedCounts:
    """Count the released code's order of loops on a micro-batch.

    For every probe, step and micro-batch it builds the gradient graph once and runs, for every block, a second backward
    pass to all parameters, of which all but the block's are thrown away. Its operations are PyTorch's plain ones.

    Args:
        model: On the meta device.
        loss: As for :func:`hvp_engine.slq`.
        batch: A micro-batch on the meta device.
        partition: The blocks, resolved against ``model``.
    """
    meter = Meter()
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with meter.part() as gradient:
        total = evaluate(model, loss, batch)
        found = torch.autograd.grad(total, list(leaves.values()), create_graph=True, allow_unused=True)
    gradients = dict(zip(leaves, found, strict=True))
    works: dict[str, Work] = {}
    pruned: dict[str, Work] = {}
    for name, block in partition.blocks.items():
        outputs = [part.take(g) for part in block.parts if (g := gradients[part.parameter]) is not None]
        targets = [leaves[part.parameter] for part in block.parts]
        for inputs, counted in ((list(leaves.values()), works), (targets, pruned)):
            with meter.part() as counted[name]:
                torch.autograd.grad(
                    outputs, inputs, [torch.empty_like(o) for o in outputs], retain_graph=True, allow_unused=True
                )
    everything = sum(p.numel() for p in leaves.values())
    separate = frozenset(name for name, block in partition.blocks.items() if block.numel == everything)
    return PublishedCounts(gradient, works, pruned, separate)
