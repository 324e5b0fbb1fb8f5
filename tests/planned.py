"""What the tests of the planner share: a small GPT, and its counts."""

from __future__ import annotations

import torch
from torch import nn

from hvp_engine.blocks import resolve
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.planning.counting import Counts, JobCounter, data_shape, meta_copy

CONFIG = GPTConfig(vocabulary=512, context=128, layers=2, heads=2, width=32)


BATCH = 3


def counted(
    model: nn.Module,
    loss: object,
    data: list[object],
    blocks: object = None,
    operator: type[CurvatureOperator] = HessianOperator,
) -> Counts:
    shell = meta_copy(model, torch.float32)
    counter = JobCounter(shell, loss, data_shape(data, torch.float32), resolve(shell, blocks), operator=operator)
    return counter.count(None)


def small_gpt() -> tuple[GPT, list[torch.Tensor]]:
    torch.manual_seed(0)
    return GPT(CONFIG).eval(), [torch.randint(0, CONFIG.vocabulary, (BATCH, CONFIG.context)) for _ in range(2)]
