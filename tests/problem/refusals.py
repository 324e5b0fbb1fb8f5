"""One sweep over a job, and the errors that it must end in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hvp_engine as he
from hvp_engine.errors import ObjectiveError


def mean_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def one_sweep(model: nn.Module, loss: Any, data: Any) -> None:
    operator = he.HessianOperator(model, loss, data=data)
    operator.matmat({"full": torch.ones(1, operator.numel["full"])})


def refuse(match: str, model: nn.Module, loss: Any, data: Any, kind: type[Exception] = ObjectiveError) -> None:
    with pytest.raises(kind, match=match):
        one_sweep(model, loss, data)
