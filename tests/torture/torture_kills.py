"""Jobs that are killed at random moments, again and again, and come to the same bits."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from campaign import CLEAN, KINDS, JobKind, Referee, same_bits
from forks import INTERRUPTED, Outcome, Server

from hvp_engine.jobs.folder import FOLDER

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# What is sent, one after the other: the first is what ends the child, unless the second comes before it has cleaned up.
VOLLEYS = [(KILL,), (KILL,), (TERM,), (INT,), (INT, INT), (TERM, TERM), (INT, KILL), (TERM, KILL), (TERM, INT)]
CADENCES = (0.0, 0.0, 0.05, 1e9)  # seconds between checkpoints
PHASES = {"wave-001": "in its second wave", "wave-": "in its first wave", "head-": "with the head's curvature"}
MOST = 12  # kills of one job, after which it is let go on to its end

History = list[str]


def shoot(server: Server, chance: random.Random, duration: float, history: History) -> None:
    """Send a child signals at a random moment, or let it end before that."""
    volley = chance.choice(VOLLEYS)
    moment = chance.uniform(0.0, duration)
    history.append(f"after {moment:.3f} s " + ", ".join(one.name for one in volley))
    for number in volley:
        if server.ends_within(moment):
            return
        server.send(number)
        moment = chance.choice([0.0, chance.uniform(0.0, 0.02)])


def was_killed(outcome: Outcome) -> bool:
    """Whether a child ended as a signal ends a Python program that does not catch it."""
    return outcome.status in (-KILL, -TERM, -INT, INTERRUPTED)


def left_in(out: Path) -> str:
    """Say in words how far a job came."""
    if (out / "manifest.json").exists():
        return "with its result written"
    names = [path.name for path in (out / FOLDER).iterdir()] if (out / FOLDER).exists() else []
    for start, words in PHASES.items():
        if any(name.startswith(start) for name in names):
            return words
    return "before its first step"


def complete(server: Server, out: Path, kind: JobKind, duration: float, chance: random.Random, history: History) -> Any:
    """Start a job and kill it until it is complete; return what the last child gave."""
    arguments: dict[str, Any] = {"out": str(out), "kind": asdict(kind)}
    for _ in range(MOST):
        server.call("campaign:perform", **arguments, every=chance.choice(CADENCES))
        shoot(server, chance, duration, history)
        outcome = server.outcome()
        assert not outcome.warnings, (outcome, history)
        if outcome.value is not None:
            return outcome.value
        assert was_killed(outcome), (outcome, history)
        history.append(f"killed {left_in(out)}")
    outcome = server.run("campaign:perform", **arguments)
    assert outcome.value is not None and not outcome.warnings, (outcome, history)
    return outcome.value


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_killed_job_comes_to_the_same_bits(
    tmp_path: Path,
    name: str,
    server: Server,
    referee: Referee,
    chance: random.Random,
    tally: Counter[str],
    request: pytest.FixtureRequest,
) -> None:
    kind, share = KINDS[name], -(-request.config.getoption("kills") // len(KINDS))
    wanted = referee.wanted(kind)
    started = time.monotonic()
    assert same_bits(server.run("campaign:perform", out=None, kind=asdict(kind)).value["numbers"], wanted["numbers"])
    duration = time.monotonic() - started
    kills = jobs = 0
    while kills < share:
        out, history = tmp_path / str(jobs), [name]
        found = complete(server, out, kind, duration, chance, history)
        assert same_bits(found["numbers"], wanted["numbers"]), history
        assert sorted(path.name for path in out.iterdir()) == CLEAN, history
        killed = [line for line in history if line.startswith("killed")]
        kills, jobs = kills + len(killed), jobs + 1
        tally.update(killed)
        tally["kills in all"] += len(killed)
        tally["jobs that were completed after kills"] += bool(killed)
    again = server.run("campaign:perform", out=str(out), kind=asdict(kind))  # what is complete is returned
    assert again.value["steps"] == 0 and same_bits(again.value["numbers"], wanted["numbers"])
