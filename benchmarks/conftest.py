"""Options of the benchmark suite and its report: one JSON and one Markdown table, free of machine and user names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import results


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    parser.addoption("--size", default="laptop", help="job of the sweep benchmarks: tiny, laptop, medium or gpt2")
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where models and vectors live")
    parser.addoption("--write", action="store_true", help="merge what was measured into benchmarks/results")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU run the benchmarks that take a device; the others measure CPU kernels, page faults or processes."""
    if config.getoption("--device") == "cpu":
        return
    here = [item for item in items if "device" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in here])
    items[:] = here


@pytest.fixture
def size(request: pytest.FixtureRequest) -> str:
    """Name of the job to run."""
    return str(request.config.getoption("--size"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device to run on."""
    name = str(request.config.getoption("--device"))
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda: torch finds no CUDA device; benchmarks/README.md says which torch to install")
    return torch.device(name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results when asked to."""
    plugin = getattr(session.config, "_benchmarksession", None)
    if not session.config.getoption("--write") or plugin is None:
        return
    rows = {}
    for bench in plugin.benchmarks:
        if bench.stats.rounds:  # else interrupted
            rows[bench.name] = {"median_s": bench.stats.median, **bench.extra_info}
    path = results.FOLDER / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    merged = results.merge(known, rows, torch.device(session.config.getoption("--device")))
    results.FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")
    (results.FOLDER / "RESULTS.md").write_text(results.table(merged))
