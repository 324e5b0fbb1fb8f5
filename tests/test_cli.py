"""The command line, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hvp_engine import cli

JOB = """
import torch
from torch import nn
from hvp_engine import losses


def job():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data


def wrong():
    return 1


def curious(question):
    return job()


CONSTANT = 3
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(JOB)
    return "work.py:job"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvp-engine", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_slq_show_and_plot(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("slq", target, "--blocks", "parameter", "--steps", "4", "--probes", "2", "--quiet")
    assert call(monkeypatch, *arguments) == 0
    run = tmp_path / "runs" / "work-job"
    assert "0.weight" in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {"manifest.json", "spectra.safetensors"}
    assert call(monkeypatch, "show", str(run)) == 0
    shown = capsys.readouterr().out
    assert "2.bias" in shown and "distribution" in shown and "rademacher" in shown
    assert call(monkeypatch, "plot", str(run)) == 0
    for name in ("spectra.png", "js_distance.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_named_globs_and_options_reach_the_engine(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(
        monkeypatch, "slq", target, "--blocks", "w=*.weight", "--blocks", "b=0.bias,2.bias", "--steps", "3",
        "--probes", "1", "--precision", "fp64", "--distribution", "gaussian", "--seed", "4", "--out", "r", "--no-check",
    )  # fmt: skip
    assert code == 0
    assert call(monkeypatch, "show", "r") == 0
    shown = capsys.readouterr().out
    assert "gaussian" in shown and "fp64" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slq", "work.py"), "not of the form FILE:FUNCTION"),
        (("slq", "missing.py:job"), "no file missing.py"),
        (("slq", "work.py:absent"), "no function 'absent'"),
        (("slq", "work.py:CONSTANT"), "no function 'CONSTANT'"),
        (("slq", "work.py:wrong"), "must return (model, loss, data)"),
        (("slq", "work.py:curious"), "'question'"),
        (("demo", "--out", "/proc/nowhere"), "cannot be created"),
        (("slq", "work.py:job", "--blocks", "0.wieght"), "Did you mean '0.weight'"),
        (("show", "nowhere"), "nowhere"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_unknown_options_are_usage_errors(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "slq", target, "--setps", "3") == 2
    assert "--setps" in capsys.readouterr().err


def test_interruption_tells_how_to_go_on(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hvp_engine.krylov.lanczos import BatchedLanczos

    def step(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchedLanczos, "step", step)
    assert call(monkeypatch, "slq", target, "--steps", "3", "--probes", "1", "--quiet") == 130
    assert "same command again" in capsys.readouterr().err
    monkeypatch.setattr(sys.modules["hvp_engine.diagnosis.doctor"], "doctor", step)
    assert call(monkeypatch, "doctor", target) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_progress_lines_reach_a_log_and_the_help_is_there(target: str) -> None:
    command = [sys.executable, "-m", "hvp_engine", "slq", target, "--steps", "2", "--probes", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "slq: done in" in result.stderr
    result = subprocess.run([sys.executable, "-m", "hvp_engine", "--help"], capture_output=True, text=True, check=True)
    for name in ("demo", "doctor", "slq", "show", "plot"):
        assert name in result.stdout
