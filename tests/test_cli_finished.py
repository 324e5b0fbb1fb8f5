"""merge, compare, export and show --json, as a user types them."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_spectra import random_spectra
from test_cli import JOB, call

from hvp_engine.results.spectra import Spectra
from hvp_engine.system import phases
from hvp_engine.system.phases import Display


def test_parts_of_a_job_are_run_merged_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(JOB)
    job = ("slq", "work.py:job", "--blocks", "2.bias", "--steps", "3", "--quiet", "--no-check", "--probes", "2")
    assert call(monkeypatch, *job, "--out", "a") == call(monkeypatch, *job, "--first-probe", "2", "--out", "b") == 0
    capsys.readouterr()
    assert call(monkeypatch, "merge", "a", "b", "--out", "all") == 0
    assert "2.bias" in (shown := capsys.readouterr().out) and "Results are in all/" in shown
    assert Spectra.load("all")["2.bias"].probes == 4
    assert call(monkeypatch, "merge", "a", "a", "--out", "twice") == 1
    assert "have the same probes (0 to 1)" in capsys.readouterr().err and not (tmp_path / "twice").exists()
    assert call(monkeypatch, "compare", "a", "b") == 0
    assert "b minus a" in (shown := capsys.readouterr().out) and "first_probe: None there, 2 here" in shown
    assert call(monkeypatch, "compare", "a", "all", "--json") == 0
    assert json.loads(capsys.readouterr().out)["differences"] == ["probes: 2 there, 4 here"]


def test_export_writes_the_formats_into_the_run_folder_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spectra, run = random_spectra(), tmp_path / "run"
    spectra.save(run)
    assert call(monkeypatch, "export", str(run)) == 0
    assert capsys.readouterr().out.split() == [str(run / "export.csv"), str(run / "export-nodes.csv")]
    assert call(monkeypatch, "export", str(run), "--format", "npz", "--out", str(tmp_path / "x.npz")) == 0
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["layer.0/weight/nodes"], spectra["layer.0/weight"].nodes)
    assert call(monkeypatch, "export", str(run), "--format", "json") == 0
    document = json.loads((run / "export.json").read_text())
    assert [block["name"] for block in document["blocks"]] == list(spectra)
    assert Spectra.load(run).manifest == spectra.manifest  # what lies beside does not matter
    assert call(monkeypatch, "export", str(run), "--format", "xlsx") == 2


def test_show_prints_json_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random_spectra(1).save(tmp_path)
    assert call(monkeypatch, "show", str(tmp_path), "--json") == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert set(told) == {"js0", "blocks", "run"} and told["js0"]["value"] is None
    assert set(told["run"]) == {"job", "settings", "notes", "origin", "versions", "seconds"}
    assert told["run"]["job"] == "slq" and told["run"]["settings"]["seed"] == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("show", "a"), {"reading spectra.safetensors", "evaluating numbers and their bars"}),
        (("export", "a"), {"reading spectra.safetensors", "evaluating numbers and their bars"}),
        (("compare", "a", "b"), {"reading spectra.safetensors", "comparing spectra"}),
        (("plot", "a"), {"drawing spectra.png", "drawing js_distance.png"}),
        (("plot", "a", "b"), {"reading the runs", "drawing evolution_trace.png"}),
    ],
)
def test_what_a_command_does_is_told_on_a_terminal(
    command: tuple[str, ...], told: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        random_spectra(seed).save(name)
    begun: list[str] = []
    monkeypatch.setattr(Display, "enter", lambda self, phase: begun.append(phase.name))
    monkeypatch.setattr(Display, "leave", lambda self, phase: None)
    call(monkeypatch, *command)
    assert begun == []  # there is no terminal
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert call(monkeypatch, *command) == 0
    assert told <= set(begun)


def test_nothing_is_left_on_a_terminal_when_the_result_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_spectra(1).save(tmp_path)
    monkeypatch.setattr(phases, "_PATIENCE", 0.0)
    monkeypatch.setattr(phases, "_LOOKS_EVERY", 0.001)
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown: list[object] = []

    def slowly(self: Spectra, summarize: Callable[[Spectra], str] = Spectra.summary) -> str:
        with phases.phase("slow"):
            time.sleep(0.2)
            display = phases._display.get()
            assert display is not None and display._live is not None
        shown.extend((display._live, sys.stdout))
        return summarize(self)

    monkeypatch.setattr(Spectra, "summary", slowly)
    before = sys.stdout
    assert call(monkeypatch, "show", str(tmp_path)) == 0
    assert shown == [None, before]
