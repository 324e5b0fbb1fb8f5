"""Runs of seconds that share their caches, as drivers of one results folder do."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from hvp_engine.experiments import run
from hvp_engine.experiments.registry import Setting, Value, find
from hvp_engine.experiments.result import Result

FILES = {"manifest.json", "table.csv", "table.md", "claim.json", "figure.png", "figure.pdf"}


@pytest.fixture(scope="session")
def shared_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the results of all tiny runs in this session."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def run_tiny(shared_results: Path) -> Callable[[str], Result]:
    """Run a driver at size tiny with one seed, once for all tests; check its files, and that it asks for options."""
    asked: set[str] = set()
    option = Setting.option

    def recorded(setting: Setting, key: str, default: Value) -> Value:
        asked.add(key)
        return option(setting, key, default)

    @lru_cache
    def ran(name: str) -> Result:
        out = shared_results / name
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Setting, "option", recorded)
            result = run(name, size="tiny", seeds=1, out=out)
        assert set(find(name).options) - asked <= {"tokens"}  # which only the paper's size has
        assert {path.name for path in out.iterdir()} >= FILES
        with (out / "table.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert tuple(rows[0]) == result.table.columns and len(rows) == 1 + len(result.table.rows) > 1
        assert {len(row) for row in rows} == {len(result.table.columns)}
        decided = json.loads((out / "claim.json").read_text())
        assert decided["id"] == find(name).id and decided["holds"] == result.holds
        assert [claim["statement"] for claim in decided["claims"]] == [claim.statement for claim in result.claims]
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["driver"] == name and manifest["settings"]["size"] == "tiny"
        assert all(seconds >= 0.0 for seconds in manifest["seconds"].values())
        assert (out / "figure.png").stat().st_size > 10_000
        return result

    return ran
