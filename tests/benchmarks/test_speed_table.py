"""The table of times against others, at sizes of seconds: it measures, compares and says what it left out."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    before, threads = list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path[:] = before
    torch.set_num_threads(threads)


@pytest.fixture
def table():
    return importlib.import_module("speed.table")


def test_products_and_sweeps_are_measured_and_those_who_are_not_there_left_out(capsys, monkeypatch):
    program, rivals = importlib.import_module("speed_table"), importlib.import_module("rivals")
    monkeypatch.setitem(rivals.RIVALS, "nobody", rivals.Rival(rivals.autograd, "a_package_that_is_not_there"))
    program.main(["--tiny", "--rounds", "1", "--busy", "1", "--rows", "product", "sweep", "head"])
    lines = capsys.readouterr().out.split("# Times against others")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    jobs = [(row[0], row[1]) for row in cells]
    for network in ("tiny MLP", "tiny GPT"):
        assert ("product", network) in jobs
        assert ("16 vectors", network) in jobs
    assert jobs.count(("sweep over 25 blocks", "tiny")) == 2
    compared = [row for row in cells if len(row) == 9 and row[5].startswith(">=")]
    assert len(compared) == 6
    for row in compared:
        assert float(row[4]) > 0
        assert float(row[7]) > 0
    assert any("nobody (not installed)" in line for line in lines)
    assert any("bf16 with F.cross_entropy" in line for line in lines)


def test_a_rival_that_is_wrong_is_left_out_and_not_beaten(monkeypatch):
    products, rivals = importlib.import_module("speed.products"), importlib.import_module("rivals")
    networks = importlib.import_module("speed.networks")

    def wrong(task):
        right = rivals.autograd(task)
        return lambda vector: 1.01 * right(vector)

    monkeypatch.setattr(
        products, "RIVALS", {"right": rivals.RIVALS["plain autograd"], "off": rivals.Rival(wrong, "torch")}
    )
    network = networks.TINY["tiny MLP"]
    task = network.make()
    found, left_out = products.rival_products(network, rivals.autograd(task)(task.vectors(1)[0]))
    assert list(found) == ["right"]
    assert left_out == ["off (wrong by 1.0e-02)"]


def test_first_products_of_a_model_and_of_a_process_are_timed():
    products, networks = importlib.import_module("speed.products"), importlib.import_module("speed.networks")
    row, best = products.first("tiny MLP", networks.TINY["tiny MLP"], 1)
    fresh = products.first_of_process("tiny MLP", best, 1)
    assert row.against == best
    assert row.others[best] == row.theirs > 0
    assert row.ours > 0
    assert fresh.against == best
    assert fresh.ours > 0
    assert fresh.theirs > 0


def test_a_row_says_whether_it_reached_its_target(table):
    target = table.Target(1.5, floor=1.2)
    assert [target.reached(ratio) for ratio in (1.6, 1.5, 1.3, 1.1)] == ["yes", "yes", "above its floor", "**no**"]
    row = table.Row("product", "a", 2e-3, 4e-3, "somebody", target)
    beside = table.Row("product", "a", 4e-3, 4.4e-3, "somebody", target)
    (found,) = table.joined([row], [beside])
    assert found.ratio == 2.0
    assert found.busy == pytest.approx(1.1)
    assert found.cells()[-1] == "0.55 (**no**)"
    text = table.markdown([found], {"threads": 2}, 2, ["something is left out"])
    assert "| product | a | 2 ms | somebody: 4 ms | 2.00 | >= 1.5 (floor 1.2) | yes | 1.10 | 0.55 (**no**) |" in text
    assert text.endswith("- something is left out.\n")


def test_busy_processes_run_meanwhile_and_no_longer():
    busy = importlib.import_module("speed.busy")
    started = []
    plain = subprocess.Popen

    class Watched(plain):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy.subprocess, "Popen", Watched)
        with busy.busy(2):
            assert [process.poll() for process in started] == [None, None]
    assert all(process.poll() is not None for process in started)
    assert len(started) == 2
