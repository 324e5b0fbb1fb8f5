"""The commands trace, diagonal, norms and off-diagonal, and what job files give beside model, loss and data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import hvp_engine as he
from hvp_engine import cli
from hvp_engine.cli.job_file import load_job
from hvp_engine.cli.kinds import kind_of
from hvp_engine.errors import ConfigurationError
from hvp_engine.results.traces import Traces

JOB = """
import torch
from torch import nn
from hvp_engine import losses


def job():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data


def trained():
    model, loss, data = job()
    optimizer = torch.optim.Adam(model.parameters())
    loss(model, data[0])[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "loss": loss, "data": data, "blocks": "module", "precondition": optimizer}


def scaled():
    model, loss, data = job()
    diagonal = {name: torch.full_like(value, 4.0) for name, value in model.named_parameters()}
    return {"model": model, "loss": loss, "data": data, "precondition": diagonal}


def misspelt():
    model, loss, data = job()
    return {"model": model, "loss": loss, "data": data, "block": "module"}


def incomplete():
    model, loss, data = job()
    return {"model": model, "data": data}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work.py").write_text(JOB)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvp-engine", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("command", "options", "python"),
    [
        ("trace", ("--products", "8", "--method", "hutchinson"), {"products": 8, "method": "hutchinson"}),
        ("diagonal", ("--tolerance", "0.2", "--operator", "ggn"), {"tolerance": 0.2, "operator": "ggn"}),
        ("norms", ("--products", "9", "--seed", "3"), {"products": 9, "seed": 3}),
        ("off-diagonal", ("--probes", "3", "--precision", "fp64"), {"probes": 3, "precision": "fp64"}),
    ],
)
def test_a_command_gives_what_the_call_gives_and_show_reads_it(
    command: str,
    options: tuple[str, ...],
    python: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, command, "work.py:job", "--blocks", "module", *options, "--quiet") == 0
    run = Path("runs") / f"work-job-{command}"
    printed = capsys.readouterr().out
    assert f"hvp-engine show {run}" in printed
    model, loss, data, *_ = load_job("work.py:job")
    expected = getattr(he, command.replace("-", "_"))(model, loss, "module", data=data, progress=False, **python)
    kind = kind_of(run)
    assert kind.record(kind.load(run)) == kind.record(expected)
    assert expected.summary() in printed
    assert call(monkeypatch, "show", str(run), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("run")["job"] == command.replace("-", " ")
    assert shown == kind.record(expected)


def test_norms_are_of_every_parameter_where_no_blocks_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "norms", "work.py:job", "--quiet", "--out", "n") == 0
    kind = kind_of(Path("n"))
    assert list(kind.load(Path("n"))) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_off_diagonal_asks_for_blocks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "off-diagonal", "work.py:job", "--quiet") == 1
    assert "needs two of them at least" in capsys.readouterr().err


def test_commands_do_not_meet_in_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"slq": ("--steps", "2"), "eigsh": ("--k", "1"), "trace": (), "diagonal": (), "norms": ()}
    for command, options in few.items():
        assert call(monkeypatch, command, "work.py:job", "--blocks", "2.bias", *options, "--quiet", "--no-check") == 0
    assert {path.name for path in Path("runs").iterdir()} == {
        "work-job", "work-job-eigsh", "work-job-trace", "work-job-diagonal", "work-job-norms",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["slq", "eigsh", "trace", "diagonal", "norms", "off-diagonal"])
def test_matrices_are_preconditioned_by_what_the_job_file_gives(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"slq": ("--steps", "2", "--probes", "1"), "eigsh": ("--k", "1")}.get(command, ())
    assert call(monkeypatch, command, "work.py:trained", "--precondition", *few, "--quiet", "--out", "r") == 0
    capsys.readouterr()
    assert call(monkeypatch, "show", "r") == 0
    assert "P^-1/2" in capsys.readouterr().out or "precondition" in Path("r/manifest.json").read_text()


def test_a_diagonal_by_name_divides_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    for out, options in (("plain", ()), ("divided", ("--precondition",))):
        assert call(monkeypatch, "trace", "work.py:scaled", *options, "--quiet", "--out", out) == 0
    plain, divided = (Traces.load(out)["full"].value for out in ("plain", "divided"))
    assert divided == pytest.approx(plain / 4, rel=1e-5)


def test_without_something_to_divide_by_the_fix_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "trace", "work.py:job", "--precondition") == 1
    error = capsys.readouterr().err
    assert "'precondition': optimizer" in error
    assert not Path("runs").exists()


def test_blocks_of_a_dict_are_taken_and_the_tuple_is_the_same_job() -> None:
    as_dict = load_job("work.py:trained")
    assert as_dict.blocks == "module" and as_dict.precondition is not None
    assert load_job("work.py:job").precondition is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("misspelt", "the key 'block'; its keys must be 'model', 'loss', 'data', and may be 'blocks'"),
        ("incomplete", "no key 'loss'"),
    ],
)
def test_a_dict_with_other_keys_is_refused(function: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_job(f"work.py:{function}")


def test_an_interrupted_estimate_says_that_it_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hvp_engine.cli.jobs

    def stopped(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hvp_engine.cli.jobs, "load_job", stopped)
    assert call(monkeypatch, "off-diagonal", "work.py:job") == 130
    assert "same command again goes on" in capsys.readouterr().err
