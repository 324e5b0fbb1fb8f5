"""Runs compared from their folders, with what differs between their jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, RunFolderError


def test_runs_of_other_probes_steps_and_weights_are_compared(tmp_path: Path) -> None:
    case, trained = mlp(), mlp()
    for parameter in trained.model.parameters():
        parameter.data.mul_(1.5)
    settings = {"data": case.data, "check": False, "progress": False}
    first = he.slq(case.model, case.loss, "parameter", steps=5, probes=2, out=tmp_path / "a", **settings)
    second = he.slq(trained.model, case.loss, "parameter", steps=7, probes=3, out=tmp_path / "b", **settings)
    comparison = he.compare(tmp_path / "a", str(tmp_path / "b"))
    assert list(comparison) == list(first) and comparison.names == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert {"steps: 5 there, 7 here", "probes: 2 there, 3 here"} < set(comparison.differences)
    assert any(words.startswith("parameters: ") for words in comparison.differences)
    for name, found in comparison.items():
        assert found.trace.value == second[name].trace().value - first[name].trace().value
    loose = he.compare(first, second)
    assert loose.to_dict()["blocks"] == comparison.to_dict()["blocks"]
    assert loose.names == ("The first run", "The second run")


def test_a_job_with_a_folder_and_one_without_are_the_same_job(tmp_path: Path) -> None:
    case = mlp()
    settings = {"data": case.data, "steps": 3, "probes": 1, "check": False, "progress": False}
    kept = he.slq(case.model, case.loss, **settings, out=tmp_path)
    loose = he.slq(case.model, case.loss, **settings)
    assert he.compare(kept, loose).differences == he.compare(loose, kept).differences == []


def test_what_is_no_run_of_spectra_is_refused(tmp_path: Path) -> None:
    case = mlp()
    he.eigsh(case.model, case.loss, ["0.bias"], data=case.data, k=1, check=False, out=tmp_path / "pairs")
    with pytest.raises(ConfigurationError, match="is of a job 'eigsh'; only runs of slq"):
        he.compare(tmp_path / "pairs", tmp_path / "pairs")
    with pytest.raises(ConfigurationError, match="The first run is of type dict; give a run folder"):
        he.compare({}, tmp_path)
    with pytest.raises(RunFolderError, match="no run folder"):
        he.compare(tmp_path / "nowhere", tmp_path)
