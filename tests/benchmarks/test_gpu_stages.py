"""benchmarks/gpu_stages.py: a stage that fails, hangs or dies costs itself alone, and every row is on disk at once."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAKES = """
import os, sys, time
def passes(emit, device, small):
    emit(what="first", value=1.5)
    print("a library's own words")
    os.write(1, b"and those of native code\\n")
    emit(what="second", worker=os.getpid())
def raises(emit, device, small):
    emit(what="before")
    raise ValueError("the cause\\nand more")
def hangs(emit, device, small):
    emit(what="before")
    time.sleep(600)
def dies(emit, device, small):
    os.abort()
"""
WORKER = """
import sys
sys.path[:0] = [{benchmarks!r}, {folder!r}]
from stages.runner import Stage, serve
stages = [Stage(name, 1, name) for name in {names!r}]
serve(stages, lambda: ("device", True), lambda: dict(counted=3))
"""
PARENT = """
import sys
sys.path[:0] = [{benchmarks!r}]
from pathlib import Path
from stages.runner import Rows, Stage, run_stages
from stages.table import markdown
stages = [Stage("first", 60, "a"), Stage("second", 60, "a")]
run_stages(stages, [sys.executable, {worker!r}], Rows(Path({out!r}), markdown), 60)
"""


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stages.runner
    import stages.table

    return stages


@pytest.fixture
def worker(tmp_path):
    """Command that serves stages of these names, each a function of FAKES."""

    def command(**functions: str) -> list[str]:
        for name, function in functions.items():
            (tmp_path / f"{name}.py").write_text(f"{FAKES}\nrun = {function}\n")
        path = tmp_path / "worker.py"
        path.write_text(WORKER.format(benchmarks=str(BENCHMARKS), folder=str(tmp_path), names=list(functions)))
        return [sys.executable, str(path)]

    return command


def results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_what_goes_wrong_costs_its_own_stage_alone(stages, worker, tmp_path):
    names = {"one": "passes", "two": "passes", "three": "raises", "four": "hangs", "five": "dies", "six": "passes"}
    rows = stages.runner.Rows(tmp_path, stages.table.markdown)
    listed = [stages.runner.Stage(name, 2 if name == "four" else 20, name) for name in names]
    stages.runner.run_stages(listed, worker(**names), rows, 60)
    found = results(tmp_path)
    assert found == rows.rows
    ends = {row["stage"]: row for row in found if row.get("end")}
    assert {name: end["ok"] for name, end in ends.items()} == {
        "one": True, "two": True, "three": False, "four": False, "five": False, "six": True
    }  # fmt: skip
    assert ends["one"]["counted"] == 3
    assert ends["three"]["error"] == "ValueError: the cause"
    assert "limit of 2 s" in ends["four"]["error"]
    assert "died" in ends["five"]["error"]
    assert next(row for row in found if row["stage"] == "four")["what"] == "before"
    workers = {row["stage"]: row["worker"] for row in found if row.get("what") == "second"}
    assert workers["one"] == workers["two"] != workers["six"]  # one worker as long as nothing fails
    table = (tmp_path / "results.md").read_text()
    assert "| four | **no** |" in table
    assert "- first: value 1.5" in table


def test_without_time_the_rest_is_named_and_not_begun(stages, worker, tmp_path):
    rows = stages.runner.Rows(tmp_path, stages.table.markdown)
    listed = [stages.runner.Stage("one", 60, "one"), stages.runner.Stage("two", 60, "two")]
    stages.runner.run_stages(listed, worker(one="hangs", two="passes"), rows, 6)
    assert [(row["stage"], row["ok"], row["error"]) for row in rows.rows if row.get("end")] == [
        ("one", False, "stopped at its limit of 6 s"),
        ("two", None, "no time was left"),
    ]


def test_rows_survive_the_end_of_the_runner_itself(worker, tmp_path):
    script = tmp_path / "parent.py"
    command = worker(first="passes", second="hangs")
    script.write_text(PARENT.format(benchmarks=str(BENCHMARKS), worker=command[1], out=str(tmp_path)))
    parent = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    path = tmp_path / "results.jsonl"
    for _ in range(300):
        if path.exists() and path.read_text().count("\n") >= 4:
            break
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert [(row["stage"], row.get("what")) for row in results(tmp_path)] == [
        ("first", "first"), ("first", "second"), ("first", None), ("second", "before")
    ]  # fmt: skip
    assert "| first | yes |" in (tmp_path / "results.md").read_text()


def test_the_stages_exist_and_fit_their_time(stages, monkeypatch):
    import gpu_stages

    assert sum(stage.limit for stage in gpu_stages.STAGES) <= 380
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    assert [stage.module for stage in gpu_stages.STAGES if importlib.util.find_spec(stage.module) is None] == []


def test_stages_run_small_on_the_cpu_from_the_command(tmp_path):
    names = "ceilings,operations,lanczos kernels,whole calls,sanitizer"
    command = [sys.executable, str(BENCHMARKS / "gpu_stages.py"), "--device", "cpu", "--small", "--only", names]
    done = subprocess.run([*command, "--out", str(tmp_path)], check=False, capture_output=True, text=True)
    found = results(tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "stderr.log").read_text()
    assert [row["stage"] for row in found if row.get("end")] == names.split(",")
    assert {row["ok"] for row in found if "ok" in row} == {True}
    said = {row.get("what", "") for row in found}
    for name in ("copy", "product 128 x 128 x 128, bf16", "host, torch.add", "native attention (causal), bf16"):
        assert name in said, sorted(said)
    assert any("hvp, tf32" in name for name in said)
