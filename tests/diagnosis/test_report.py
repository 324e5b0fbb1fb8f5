"""The report as the command line gives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import call

JOB = """
import torch
from torch import nn
from hvp_engine import losses


def fit():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data


def unfit():
    model, loss, data = fit()
    return nn.Sequential(model, nn.Dropout(0.5)), loss, data
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("work.py:fit", "--blocks", "parameter"), 0, "Fit: nothing found"),
        (("work.py:unfit",), 1, "dropout-active"),
        (("work.py:absent",), 2, "no function 'absent'"),
        (("work.py:fit", "--blocks", "0.wieght"), 2, "Did you mean '0.weight'"),
    ],
)
def test_exit_codes_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    (tmp_path / "work.py").write_text(JOB)
    assert call(monkeypatch, "doctor", *arguments) == code
    out, err = capsys.readouterr()
    assert text in (err if code == 2 else out)


def test_the_command_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work.py").write_text(JOB)
    assert call(monkeypatch, "doctor", "work.py:unfit", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and report["samples"] == 6 and report["job_seconds"] > 0
    finding = report["findings"][0]
    assert finding["code"] == "dropout-active" and finding["where"] == "module '1'" and "eval()" in finding["fix"]
    assert report["blocks"][0]["wrong"] is False and report["costs"][0]["microbatch"] == 1
