"""Options of the benchmark suite and its report: one JSON and one Markdown table, free of machine and user names."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
import torch

import hvp_engine

sys.path.insert(0, str(Path(__file__).parent))

_RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    parser.addoption("--size", default="laptop", help="job of the sweep benchmarks: laptop, medium or gpt2")
    parser.addoption("--write", action="store_true", help="merge what was measured into benchmarks/results")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> str:
    """Name of the job to run."""
    return str(request.config.getoption("--size"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results when asked to."""
    plugin = getattr(session.config, "_benchmarksession", None)
    if not session.config.getoption("--write") or plugin is None:
        return
    path = _RESULTS / "results.json"
    known = json.loads(path.read_text())["benchmarks"] if path.exists() else {}
    for bench in plugin.benchmarks:
        if not bench.stats.rounds:  # interrupted
            continue
        size_label = f"[{bench.extra_info['size']}]" if "size" in bench.extra_info else ""
        known[bench.name + size_label] = {"median_s": round(bench.stats.median, 6), **_rounded(bench.extra_info)}
    facts = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "hvp_engine": hvp_engine.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    _RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "benchmarks": known}, indent=1, sort_keys=True) + "\n")
    (_RESULTS / "RESULTS.md").write_text(_table(facts, known))


def _rounded(info: dict[str, object]) -> dict[str, object]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in info.items()}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _table(facts: dict[str, object], known: dict[str, dict[str, object]]) -> str:
    lines = ["# Benchmark results", "", ", ".join(f"{key} {value}" for key, value in facts.items()) + ".", ""]
    lines += ["| benchmark | median (s) | what it shows |", "|---|---|---|"]
    for name, row in sorted(known.items()):
        shown = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("median_s", "size"))
        lines.append(f"| {name} | {row['median_s']:.4g} | {shown} |")
    return "\n".join(lines) + "\n"
