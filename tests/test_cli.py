"""The command line, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hvp_engine import cli
from hvp_engine.cli.job_file import load_job
from hvp_engine.errors import ConfigurationError
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum

JOB = """
import torch
from torch import nn
from hvp_engine import losses


def job():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data


def talking():
    print("reading the data ...")
    model, loss, data = job()

    def loud(model, batch):
        print("a loss that prints")
        return loss(model, batch)

    return model, loud, data


def ending():
    raise SystemExit("no data here")


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
    assert "2.bias" in shown and "distribution" in shown and "gaussian" in shown
    assert call(monkeypatch, "plot", str(run)) == 0
    for name in ("spectra.png", "js_distance.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_bars_for_the_choice_of_data_are_shown_and_kept(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("slq", target, "--steps", "2", "--probes", "1", "--quiet", "--no-check", "--out", "r")
    assert call(monkeypatch, *arguments, "--data-error") == 0
    assert "Choice of data: 95 % bars" in capsys.readouterr().out
    assert call(monkeypatch, "show", "r") == 0
    assert "Choice of data: 95 % bars" in capsys.readouterr().out


def test_another_matrix_is_asked_for_and_named_in_tables_and_figures(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("slq", target, "--blocks", "parameter", "--steps", "3", "--probes", "1", "--quiet", "--out", "r")
    assert call(monkeypatch, *arguments, "--operator", "empirical_fisher", "--data-error") == 0
    shown = capsys.readouterr().out
    assert "Matrix: empirical fisher, in place of the Hessian." in shown
    assert "bars of the expected empirical fisher from" in shown
    assert call(monkeypatch, "show", "r") == 0
    assert "empirical_fisher" in capsys.readouterr().out
    assert call(monkeypatch, *arguments, "--operator", "fisher") == 1
    assert "holds another job (matrix: 'empirical_fisher' there, 'fisher' here" in capsys.readouterr().err
    spectra = Spectra.load(tmp_path / "r")
    spectra.plot(tmp_path / "spectra.svg")
    spectra.plot_js(tmp_path / "js.svg")
    assert "empirical_fisher" in (tmp_path / "spectra.svg").read_text().replace("\u00a0", " ")
    assert "empirical fisher" in (tmp_path / "js.svg").read_text()
    assert call(monkeypatch, "plan", target, "--operator", "fisher", "--steps", "3", "--device", "a100-80gb") == 0
    assert "operator='fisher'" in capsys.readouterr().out


def test_named_globs_and_options_reach_the_engine(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(
        monkeypatch, "slq", target, "--blocks", "w=*.weight", "--blocks", "b=0.bias,2.bias", "--steps", "3",
        "--probes", "1", "--precision", "fp64", "--distribution", "rademacher", "--seed", "4", "--out", "r",
        "--no-check",
    )  # fmt: skip
    assert code == 0
    assert call(monkeypatch, "show", "r") == 0
    shown = capsys.readouterr().out
    assert "rademacher" in shown and "fp64" in shown


def test_tolerances_reach_the_engine_and_show_says_what_they_cost(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--tolerance", "0.4", "--tolerance", "trace=0.5", "--steps", "6", "--probes", "3", "--out", "r")
    assert call(monkeypatch, "slq", target, "--blocks", "parameter", *options, "--quiet") == 0
    capsys.readouterr()
    assert call(monkeypatch, "show", "r") == 0
    shown = capsys.readouterr().out
    assert "Products: " in shown and "exact" in shown
    assert "steps           at most 6" in shown
    (tolerance,) = [line for line in shown.splitlines() if line.startswith("tolerance  ")]
    assert set(tolerance.split()[1:]) == {"w1=0.4", "trace=0.5"}
    assert call(monkeypatch, "show", "r", "--json") == 0
    block = json.loads(capsys.readouterr().out)["blocks"][0]
    account = Spectra.load("r").manifest["adaptive"]["blocks"]["0.weight"]
    assert (block["name"], block["products"], block["products_at_ceilings"]) == (
        "0.weight", account["products"], account["ceiling"]
    )  # fmt: skip
    assert block["trace"]["low"] <= block["trace"]["value"] <= block["trace"]["high"]


def test_steps_or_probes_alone_say_exactly_what_to_do(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "slq", target, "--probes", "3", "--steps", "4", "--out", "r", "--quiet") == 0
    spectra = Spectra.load("r")
    assert spectra["full"].alphas.shape == (3, 4)
    assert "adaptive" not in spectra.manifest


def test_neither_tolerance_nor_steps_ask_for_the_usual_tolerance(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "slq", target, "--blocks", "2.bias", "--out", "r", "--quiet") == 0
    assert Spectra.load("r").settings["tolerance"] == {"w1": 0.02}


def test_plans_take_tolerances_too(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plan", target, "--tolerance", "0.3", "--steps", "20") == 0
    assert "w1=0.3" in capsys.readouterr().out
    assert call(monkeypatch, "plan", target, "--tolerance", "w2=0.3") == 1
    assert "no target named 'w2'" in capsys.readouterr().err


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


def test_what_job_files_print_stays_out_of_the_results(target: str) -> None:
    arguments = [sys.executable, "-m", "hvp_engine", "doctor", "work.py:talking", "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ok"]
    assert "reading the data" in done.stderr
    assert "a loss that prints" in done.stderr


def test_a_job_file_does_not_see_the_commands_arguments(target: str, tmp_path: Path) -> None:
    parsing = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument({!r})\nparser.parse_args()\n"
    (tmp_path / "train.py").write_text(parsing.format("--width") + JOB)
    (tmp_path / "strict.py").write_text(parsing.format("width") + JOB)
    before = list(sys.argv)
    assert load_job("train.py:job").blocks is None
    with pytest.raises(ConfigurationError, match=r"strict.py ended the process.*strict.py, line 4.*command line"):
        load_job("strict.py:job")
    assert sys.argv == before


def test_a_job_file_named_like_a_module_does_not_take_its_place(target: str, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(JOB)
    load_job("json.py:job")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("work.py:ending",), "ended the process"),
        (("work.py:job", "--blocks", "w=*.weight", "--blocks", "w=*.bias"), "twice"),
        (("work.py:job", "--blocks", "w="), "not of the form"),
        (("work.py:job", "--blocks", "parameter", "--blocks", "w=*"), "leave the other"),
        (("work.py:job", "--memory", "nan"), "no amount of memory"),
        (("work.py:job", "--memory", "-1"), "no amount of memory"),
        (("work.py:job", "--tolerance", "little"), "neither a number nor NAME=NUMBER"),
        (("work.py:job", "--tolerance", "w2=0.1"), "no target named 'w2'"),
        (("work.py:job", "--tolerance", "0"), "above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_any_work(
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, "slq", *options, "--quiet") == 1
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_fix_for_a_block_given_twice_works(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "slq", target, "--blocks", "w=*.weight", "--blocks", "w=*.bias", "--quiet")
    advice = capsys.readouterr().err.strip().rpartition("--blocks ")[2]
    assert call(monkeypatch, "slq", target, "--blocks", advice, "--steps", "2", "--probes", "2", "--quiet") == 0
    assert " 43 " in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("slq", target, "--steps", "2", "--probes", "2", "--quiet", "--out", "run")
    assert call(monkeypatch, *arguments) == 0
    show = subprocess.Popen(
        [sys.executable, "-m", "hvp_engine", "show", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    show.stdout.close()  # type: ignore[union-attr]
    assert show.stderr is not None
    assert b"Traceback" not in show.stderr.read()
    show.stderr.close()
    assert show.wait() == 1


def test_what_a_run_says_of_itself_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ones = np.ones((1, 1))
    spectrum = Spectrum.from_tridiagonal("a", 5, ones, ones[:, :0], np.array([1]))
    facts = {"config": {"seed": list(range(100_000)), "basis": "fp32"}, "notes": ["x" * 100_000, "short"]}
    Spectra([spectrum], facts).save(tmp_path / "run")
    assert call(monkeypatch, "show", str(tmp_path / "run")) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 1100
    assert "99999]" in shown and "fp32" in shown and "short" in shown
