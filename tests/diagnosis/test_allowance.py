"""The doctor keeps its time on models of any size, by a clock that evaluations of the loss move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import hvp_engine as he
from hvp_engine.diagnosis import allowance
from hvp_engine.diagnosis.allowance import CHECK, Allowance
from hvp_engine.diagnosis.report import Diagnosis

BATCH = 8


NOW = [0.0]  # the clock; beside the model, whose state the engine puts back


class Slow(nn.Module):
    """A model whose evaluations take seconds per sample, on the clock of the test."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.each = seconds
        NOW[0] = 0.0
        for name in ("monotonic", "process_time"):
            monkeypatch.setattr(allowance.time, name, lambda: NOW[0])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        NOW[0] += self.each * len(batch)
        return self.layers(batch)


def examined(seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Diagnosis, float]:
    """Examine a model of so many seconds per sample; return the report and what it took."""
    torch.manual_seed(0)
    model = Slow(seconds, monkeypatch)
    data = [(torch.randn(BATCH, 3), torch.randint(0, 3, (BATCH,))) for _ in range(4)]
    report = he.doctor(model, he.losses.classification, "parameter", data=data, seconds=60.0)
    return report, NOW[0]


def codes(report: Diagnosis) -> set[str]:
    return {finding.code for finding in report.findings}


def test_a_quick_model_is_examined_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = examined(1e-4, monkeypatch)
    assert report.ok and len(report.blocks) == 1 + 4 and report.costs[-1].microbatch == BATCH
    assert not codes(report) & {"blocks-not-reached", "batches-not-reached", "costs-not-measured"}


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0, 2.0])
def test_a_slow_model_is_examined_in_parts_within_the_time(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    report, took = examined(seconds, monkeypatch)
    assert report.ok and report.blocks, codes(report)
    assert took <= 60.0 + seconds * CHECK


def test_what_one_sample_is_too_much_for_is_left_out_with_what_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    report, took = examined(8.0, monkeypatch)
    assert took <= 120.0  # three evaluations of two samples, and a graph of one
    assert report.ok and not report.blocks
    (left_out,) = [finding for finding in report.findings if finding.code == "blocks-not-reached"]
    assert left_out.severity == "note" and "to evaluate the loss of one sample takes 8.00 s" in left_out.message
    assert "seconds=" in left_out.fix


def test_what_a_note_asks_for_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = examined(8.0, monkeypatch)
    (left_out,) = [finding for finding in report.findings if finding.code == "blocks-not-reached"]
    asked = float(left_out.fix.rpartition("seconds=")[2].rstrip(")"))
    model = Slow(8.0, monkeypatch)
    data: list[Any] = [(torch.randn(BATCH, 3), torch.randint(0, 3, (BATCH,)))]
    again = he.doctor(model, he.losses.classification, "parameter", data=data, seconds=asked)
    assert again.blocks


def test_samples_are_cut_to_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance.time, "monotonic", lambda: 100.0)
    allowed = Allowance(60.0, 80.0)
    assert allowed.left == 40.0 and allowed.most(16, 1000, 1.0) == 16  # nothing is known yet
    allowed.evaluation = 0.5
    assert allowed.most(16, 10, 1.0) == 8 and allowed.most(16, 10, 0.5) == 4 and allowed.most(16, 1000, 1.0) == 0
    assert allowed.allows(80) and not allowed.allows(81) and not allowed.allows(41, 0.5)
    spent = Allowance(1e-9, 0.0)
    spent.evaluation = 1e-3
    assert spent.allows(3000) and not spent.allows(3001)  # what takes a moment is done whatever is left
