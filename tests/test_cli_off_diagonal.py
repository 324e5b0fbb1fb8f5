"""Runs that say what lies between blocks, as `hvp-engine show` and `plot` find them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from problems import mlp

import hvp_engine as he
from hvp_engine import cli
from hvp_engine.results.off_diagonal import OffDiagonal


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["hvp-engine", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_a_run_is_shown_with_its_settings_and_unrounded_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, run = mlp(), tmp_path / "run"
    found = he.off_diagonal(case.model, case.loss, "module", data=case.data, probes=3, out=run, progress=False)
    assert not call(monkeypatch, "show", str(run))
    shown = capsys.readouterr().out
    assert found.summary() in shown and "probes          3" in shown
    assert not call(monkeypatch, "show", str(run), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told.pop("run")["job"] == "off diagonal" and told == OffDiagonal.load(run).record()
    assert not call(monkeypatch, "plot", str(run))
    assert "has no figure" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == ["manifest.json", "spectra.safetensors"]
