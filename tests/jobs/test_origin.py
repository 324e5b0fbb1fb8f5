"""What a manifest says of when, where and how a result was made; no identity depends on it."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

import pytest
import transformers
from problems import mlp
from torch import nn

import hvp_engine as he
from hvp_engine.jobs import origin as module
from hvp_engine.jobs.origin import here_and_now, origin
from hvp_engine.results.spectra import Spectra
from hvp_engine.system.versions import versions


def test_a_manifest_tells_date_host_command_and_versions(tmp_path: Path) -> None:
    case = mlp()
    he.slq(case.model, case.loss, data=case.data, steps=2, probes=1, check=False, out=tmp_path)
    manifest = Spectra.load(tmp_path).manifest
    told = manifest["origin"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["date"])
    assert told["host"] == platform.node() and told["command"] == sys.orig_argv
    assert manifest["versions"] == versions() and set(versions()) == {"hvp_engine", "torch", "numpy", "python"}
    assert told["model"]["class"] == "torch.nn.modules.container.Sequential"
    assert told["model"]["packages"] == {"torch": versions()["torch"]}


def test_packages_of_parts_count_and_code_of_ones_own_has_no_version() -> None:
    class Own(nn.Module):
        pass

    Own.__module__ = "job_of_a_user"
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5, n_positions=3)
    wrapped = nn.Sequential(transformers.GPT2LMHeadModel(config), Own())
    packages = origin(wrapped)["model"]["packages"]
    assert packages["transformers"] == transformers.__version__
    assert "job_of_a_user" in packages and packages["job_of_a_user"] is None


def test_words_that_are_no_text_are_told_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "job\udcff.py", "a\nb"])
    command = here_and_now()["command"]
    assert json.dumps(command, ensure_ascii=False).encode() and command == ["python", "job\\udcff.py", "a\\nb"]


def test_another_day_host_and_command_find_the_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = mlp()

    def run() -> Spectra:
        return he.slq(case.model, case.loss, data=case.data, steps=2, probes=1, check=False, out=tmp_path)

    first = run()
    elsewhere = {"date": "2031-01-01T00:00:00Z", "host": "elsewhere", "command": ["other"]}
    monkeypatch.setattr(module, "here_and_now", lambda: elsewhere)
    assert run().manifest["origin"] == first.manifest["origin"] != elsewhere
    identity = json.dumps(first.manifest["identity"])
    assert "origin" not in first.manifest["identity"] and first.manifest["origin"]["date"] not in identity
