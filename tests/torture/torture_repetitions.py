"""The same call two hundred times in one process: no memory, file, thread or state is left over from any."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from forks import Server

WARM_UP = 0.2  # share of the repetitions until which caches fill
GROWTH = 4.0  # MiB between the first repetitions after that and the last ones
OBJECTS = 200  # tracked by the garbage collector, fewer than two for every call

Call = Callable[[int], object]


def calls(folder: Path) -> dict[str, tuple[Any, Call]]:
    """Every call by name, with the model that it is made with."""
    import torch
    from problems import gpt, mlp

    import hvp_engine as he

    large, small = gpt(), mlp()
    vectors = {"wte.weight": torch.randn(2, 13 * 8), "ln_f.weight": torch.randn(1, 8)}
    blocks = list(vectors)
    setting: dict[str, Any] = {"data": large.data, "steps": 6, "probes": 2}

    def hvp(number: int) -> object:
        precision = ("fp32", "fp64", "bf16")[number % 3]
        return he.hvp(large.model, large.loss, vectors, blocks, data=large.data, precision=precision)  # type: ignore[arg-type]

    def slq(number: int) -> object:
        return he.slq(large.model, large.loss, blocks, check=number % 2 == 0, **setting)

    def slq_with_a_folder(number: int) -> object:
        run = folder / str(number % 2)
        if number % 4 < 2:  # of the other two calls each returns what is complete
            shutil.rmtree(run, ignore_errors=True)
        return he.slq(large.model, large.loss, blocks, check=False, out=run, **setting)

    def dense(_: int) -> object:
        return he.dense(large.model, large.loss, ["ln_f.weight"], data=large.data)

    def off_diagonal(number: int) -> object:
        return he.off_diagonal(large.model, large.loss, blocks, data=large.data, probes=2, check=number % 2 == 0)

    def doctor(_: int) -> object:
        return he.doctor(small.model, small.loss, "parameter", data=small.data, seconds=1.0).to_dict()

    def plan(number: int) -> object:
        device = "cpu" if number % 10 == 0 else "a100-80gb"  # measures this machine
        return he.plan(small.model, small.loss, "module", data=small.data, device=device)

    of_large = {"hvp": hvp, "slq": slq, "slq with a folder": slq_with_a_folder}
    of_large |= {"dense": dense, "off_diagonal": off_diagonal}
    of_small = {"doctor": doctor, "plan": plan}
    return {
        **{name: (large.model, call) for name, call in of_large.items()},
        **{name: (small.model, call) for name, call in of_small.items()},
    }


def census() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    return {
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "objects": len(gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def repeat(name: str, count: int, folder: str, trace: bool = False) -> dict[str, Any]:
    """Repeat a call in this process, a child.

    Args:
        name: One of :func:`calls`.
        count: How often.
        folder: For what the call writes.
        trace: Whether to note where memory comes from, which takes time and memory itself.
    """
    import torch
    from global_state import changes, generators, model_state, snapshot

    model, call = calls(Path(folder))[name]
    for number in range(4):
        call(number)
    torch.manual_seed(0)
    before, state = snapshot(), model_state(model)
    found, start = [], None
    for number in range(count):
        if trace and number == int(WARM_UP * count):
            tracemalloc.start(10)
            start = tracemalloc.take_snapshot()
        call(number)
        if number % 4 == 3:
            found.append(census())
    where = [str(one) for one in tracemalloc.take_snapshot().compare_to(start, "lineno")[:15]] if start else []
    assert torch.initial_seed() == 0 and generators()
    return {
        "census": found,
        "changes": [*changes(before, snapshot()), *changes(state, model_state(model))],
        "where": where,
    }


def growth(found: list[dict[str, int]], what: str) -> float:
    """How far the last fifth lies above the first one after the warm-up."""
    values = [one[what] for one in found]
    fifth = max(1, len(values) // 5)
    start = int(WARM_UP * len(values))
    return median(values[-fifth:]) - median(values[start : start + fifth])


@pytest.mark.parametrize("name", ["hvp", "slq", "slq with a folder", "dense", "off_diagonal", "doctor", "plan"])
def test_nothing_is_left_over_from_calls(
    tmp_path: Path, name: str, server: Server, tally: Counter[str], request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("repetitions")
    outcome = server.run("torture_repetitions:repeat", name=name, count=count, folder=str(tmp_path))
    assert outcome.value is not None, outcome
    assert not outcome.value["changes"]
    found = outcome.value["census"]
    for what in ("files", "threads", "tasks", "temporary files"):
        assert found[-1][what] <= found[int(WARM_UP * len(found))][what], (what, [one[what] for one in found])
    tally[f"repetitions of {name}"] += count
    grown = growth(found, "resident") / 2**20
    tally[f"KiB of growth with repetitions of {name}"] += round(grown * 1024)
    if grown > GROWTH or growth(found, "objects") > OBJECTS:
        traced = server.run("torture_repetitions:repeat", name=name, count=count, folder=str(tmp_path), trace=True)
        lines = "\n".join(traced.value["where"])
        pytest.fail(f"{grown:.1f} MiB and {growth(found, 'objects'):.0f} objects more with {count} calls.\n{lines}")
