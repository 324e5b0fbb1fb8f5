"""Ctrl-C, whatever is being done: the command ends with what to do next and a shell's code, and goes on later."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hvp_engine import cli
from hvp_engine.system.phases import Phase

JOB = """
import torch
from torch import nn
from hvp_engine import losses

def job():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, losses.classification, [(torch.randn(6, 3), torch.randint(0, 3, (6,))) for _ in range(2)]
"""
PHASES = {
    "reading the data",
    "evaluating the loss",
    "making room for vectors",
    "hashing the model",
    "evaluating the loss on all data",
    "multiplying by every block once",
    "testing the second derivative",
    "evaluating what was found",
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["hvp-engine", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def interrupted_in(name: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come when a phase begins; note all phases."""
    original = Phase.__init__

    def begin(self: Phase, given: str, now: float) -> None:
        original(self, given, now)
        given = given.partition(",")[0]  # without the seconds that it may take
        seen.append(given)
        if given == name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Phase, "__init__", begin)


@pytest.mark.parametrize("command", ["slq", "plan", "doctor"])
def test_ctrl_c_in_any_phase_ends_the_command_as_a_shell_expects(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.py").write_text(JOB)
    options: dict[str, Any] = {"slq": ["--steps", "3", "--probes", "1"], "plan": ["--steps", "3"], "doctor": []}
    asked = [command, f"{tmp_path}/job.py:job", "--blocks", "parameter", *options[command]]
    out = ["--out", str(tmp_path / "run")] if command == "slq" else []
    seen: list[str] = []
    with monkeypatch.context() as patch:
        interrupted_in(None, seen, patch)
        assert call(patch, *asked, *(["--out", str(tmp_path / "first")] if out else [])) == 0
    phases = list(dict.fromkeys(seen))
    assert len(phases) >= 5 and (command != "slq" or set(phases) >= PHASES)
    threads = threading.active_count()
    for name in phases:
        with monkeypatch.context() as patch:
            capsys.readouterr()
            interrupted_in(name, [], patch)
            assert call(patch, *asked, *out) == 130, name
        said = capsys.readouterr().err
        assert "Interrupted." in said and "Traceback" not in said, name
        assert ("The same command again goes on" in said) == (command == "slq"), name
        assert threading.active_count() == threads, name
    assert call(monkeypatch, *asked, *out) == 0
