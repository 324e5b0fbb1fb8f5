"""Models with one fault each, and what the doctor says of them."""

from __future__ import annotations

import linecache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.diagnosis.report import Diagnosis, Finding

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

DATA = [(X, torch.tensor([0, 1, 2, 1]))]


class Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.function(x)  # the line that findings point to
        return hidden


class Model(nn.Module):
    """Two linear layers with a module in between."""

    def __init__(self, function: Any = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.second = nn.Linear(5, 8), Inner(function), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.inner(self.first(x)))
        return logits


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def examine(model: nn.Module, use: Any = loss, data: Any = DATA, blocks: Any = "parameter") -> Diagnosis:
    return he.doctor(model, use, blocks, data=data)


def only(report: Diagnosis, code: str) -> Finding:
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, str(report)
    return found[0]


def points_at(finding: Finding, text: str) -> bool:
    assert finding.line is not None, finding
    file, _, number = finding.line.rpartition(":")
    return text in linecache.getline(file, int(number))


def codes(report: Diagnosis) -> list[str]:
    return [finding.code for finding in report.findings]
