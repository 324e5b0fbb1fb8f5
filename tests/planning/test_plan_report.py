"""The plan as text, as JSON, and from the command line."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from planned import CONFIG, small_gpt
from strange_names import STRANGE_NAMES

import hvp_engine as he
from hvp_engine import cli
from hvp_engine.experiments.models.gpt import paper_blocks


def test_the_record_is_json_with_everything_in_it() -> None:
    model, data = small_gpt()
    plan = he.plan(model, he.losses.causal_lm, paper_blocks(CONFIG), data=data, device="a100-80gb")
    record = json.loads(json.dumps(plan.record()))
    assert record["kind"] == "predicted" and record["device"] == "a100-80gb" and not record["calibrated"]
    assert record["ceilings"]["bandwidth"] == 2.0e12
    assert record["ceilings"]["efficiencies"]["product"]["linear"]["fp32"] < 1
    assert list(record["parts"]) == [
        "forward", "first backward", "second backwards", "reorthogonalisation", "quadrature",
    ]  # fmt: skip
    assert all(set(part) == {"flop", "bytes", "seconds", "limit"} for part in record["parts"].values())
    assert set(record["blocks"]) == set(paper_blocks(CONFIG))
    assert record["seconds"] == pytest.approx(sum(part["seconds"] for part in record["parts"].values()))
    assert {"microbatch", "precision", "basis", "streams_per_pass", "waves", "kept_graphs"} <= set(record["setting"])
    assert {"parameters", "graph per micro-batch", "Lanczos vectors"} <= set(record["memory"])
    assert {"name", "flop", "seconds", "note"} == set(record["alternatives"][0])
    at_ceiling = record["alternatives"][-1]
    assert at_ceiling["name"] == "at the data sheet's ceilings" and at_ceiling["seconds"] < record["seconds"]


def test_the_command_prints_text_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.py").write_text(
        "import torch\nfrom torch import nn\nfrom hvp_engine import losses\n\n"
        "def job():\n    with torch.device('meta'):\n"
        "        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))\n"
        "        data = [(torch.empty(6, 4), torch.empty(6, dtype=torch.int64))]\n"
        "    return model, losses.classification, data, {'w': ['*.weight']}\n"
    )

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hvp-engine", "plan", "shapes.py:job", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    shown = call("--device", "h100-80gb", "--batches", "7", "--steps", "5")
    assert "h100-80gb: predicted" in shown and "7 per sweep" in shown and "second backwards" in shown
    record = json.loads(call("--device", "v100-32gb", "--json", "--probes", "3", "--precision", "fp64"))
    assert record["job"]["probes"] == 3 and record["job"]["numel"] == {"w": 35}
    record = json.loads(call("--device", "a100-40gb", "--blocks", "parameter", "--json"))
    assert list(record["blocks"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def job(): raise ValueError('no corpus')",
            r"job raised ValueError: no corpus \(.*job.py, line 1\)",
        ),
        ("def job(x): return x", "job raised TypeError: .* must run, without arguments"),
        ("import there_is_no_such_module", "raised ModuleNotFoundError"),
        ("def job(:", "raised SyntaxError"),
    ],
)
def test_a_function_that_fails_is_reported_with_its_place(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["hvp-engine", "plan", f"{tmp_path}/job.py:job", "--device", "a100-80gb"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_notes_and_names_are_shown_literally() -> None:
    model, data = small_gpt()
    plan = he.plan(model, he.losses.causal_lm, None, data=data, device="a100-80gb")
    strange = replace(
        plan,
        notes=STRANGE_NAMES,
        alternatives=tuple(replace(plan.alternatives[0], name=name, note=name) for name in STRANGE_NAMES),
    )
    lines = strange.summary().split("\n")
    assert all(line.isprintable() for line in lines)
    assert "note: [red]markup[/red]" in lines
    assert sum(line.startswith("[red]markup[/red] ") for line in lines) == 1
