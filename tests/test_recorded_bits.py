"""The recorder of bits finds a job equal to itself, and a changed one different."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import recorded_bits


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["recorded_bits.py", *arguments])
    return recorded_bits.main()


def test_what_was_recorded_is_found_again_and_a_change_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("cnn resumed", "mlp slices", "mlp hvp")
    monkeypatch.setattr(recorded_bits, "JOBS", {name: recorded_bits.JOBS[name] for name in quick})
    file = tmp_path / "bits.json"
    assert call(monkeypatch, "record", str(file)) == 0
    assert call(monkeypatch, "compare", str(file)) == 0
    assert "3 of 3 jobs give the recorded bits" in capsys.readouterr().out
    recorded = json.loads(file.read_text())
    recorded["mlp hvp"]["numbers"] = "0" * 32
    file.write_text(json.dumps(recorded))
    assert call(monkeypatch, "compare", str(file)) == 1
    assert "mlp hvp: {'numbers': '000" in capsys.readouterr().out
