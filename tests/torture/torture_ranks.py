"""Jobs of several processes, one of which is killed at random moments, again and again until the job is complete."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import CLEAN
from ranks import Launcher

KILLED = -9
WORLDS: list[tuple[int, dict[str, int]]] = [
    (2, {"data": 2}),
    (2, {"probes": 2}),
    (3, {"data": 3}),
    (4, {"probes": 2, "data": 2}),
]
JOBS: dict[str, dict[str, Any]] = {
    "gpt": {"case": "gpt", "steps": 16, "check": True},
    "gpt in waves": {"case": "gpt", "steps": 8, "memory": 400_000, "microbatch": 1},
    "mlp to a tolerance": {"case": "mlp", "steps": 16, "probes": 4, "tolerance": 0.1},
    "cnn": {"case": "cnn", "steps": 16, "basis": "bf16", "precision": "fp32"},
}
ROUNDING = {"fp32": 1e-2, "fp64": 1e-8}  # a bf16 basis adds to float32's


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the largest difference of first coefficients, which rounding has not had time to part."""
    first = {name: [numbers[name]["alphas"][:, :4] for numbers in (found, wanted)] for name in wanted}
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in first.values())


@pytest.mark.parametrize("name", list(JOBS))
def test_a_job_that_loses_processes_is_completed(
    name: str,
    launcher: Launcher,
    chance: random.Random,
    tally: Counter[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    options = {**JOBS[name], "out": str(tmp_path / "run"), "every": 0.0}
    alone = launcher.values(1, "team_jobs:job", distributed=None, **JOBS[name])[0]
    history: list[str] = []
    lost = 0
    while lost < request.config.getoption("lost"):
        world, axes = chance.choice(WORLDS)
        who, seconds = chance.randrange(world), chance.uniform(0.0, 2.0)
        history.append(f"rank {who} of {world} after {seconds:.3f} s")
        ranks = launcher.run(world, "team_jobs:killed_after", who=who, seconds=seconds, distributed=axes, **options)
        if ranks[who].status == KILLED:
            lost += 1
            tally["processes of a team killed"] += 1
            survivors = [rank for rank in ranks if rank.status != KILLED]
            allowed = {"", "ProcessError"}  # one that was ready had its result
            assert {rank.error for rank in survivors} <= allowed, (survivors, history)
            continue
        assert not [rank for rank in ranks if rank.error], (ranks, history)
        tally["jobs of a team completed"] += 1
        _judge(ranks[0].value, alone, tmp_path / "run", history)
        for path in (tmp_path / "run").iterdir():  # once more, from the beginning
            path.unlink()
    world, axes = chance.choice(WORLDS)
    found = launcher.values(world, "team_jobs:job", distributed=axes, **options)
    tally["jobs of a team completed"] += 1
    _judge(found[0], alone, tmp_path / "run", history)


def _judge(found: dict[str, Any], alone: dict[str, Any], run: Path, history: list[str]) -> None:
    """See that a completed job has the numbers of one process, and left nothing else."""
    precision = str(alone["manifest"]["config"]["precision"])
    assert difference(found["numbers"], alone["numbers"]) < ROUNDING[precision], history
    assert sorted(path.name for path in run.iterdir()) == CLEAN, history
