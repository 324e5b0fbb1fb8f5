"""Two processes with one folder: each gets its own numbers or is refused, whatever is killed meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from campaign import CLEAN, KINDS, JobKind, Referee, same_bits, with_seed
from forks import Outcome, Server
from torture_kills import KILL, VOLLEYS, was_killed

SHARED = ("mlp in waves", "gpt in waves", "head on disk", "head in memory, classes dropped", "mlp")
REFUSALS = ("Another job runs in", "holds another job")
TURNS = 4  # how often both are started in a round, killed or not, before each is started alone


def pair(chance: random.Random) -> tuple[JobKind, JobKind]:
    """The same job twice, one with another seed, or another job."""
    kind = KINDS[chance.choice(SHARED)]
    other = chance.choice([kind, with_seed(kind, 1), with_seed(kind, 1), KINDS[chance.choice(SHARED)]])
    return kind, other


def begin(server: Server, out: Path, kind: JobKind, chance: random.Random) -> None:
    server.call("campaign:perform", out=str(out), kind=asdict(kind), every=chance.choice([0.0, 0.05, 1e9]))


def judge(outcome: Outcome, wanted: dict[str, object], history: list[str]) -> str:
    """Say how a call ended, which must be one of the ways that it may."""
    if outcome.value is not None:
        assert same_bits(outcome.value["numbers"], wanted["numbers"]), history  # type: ignore[arg-type]
        return "completed"
    if outcome.error:
        assert outcome.error == "RunFolderError", (outcome, history)
        assert any(words in outcome.message for words in REFUSALS), (outcome, history)
        return "refused: another job " + ("runs there" if REFUSALS[0] in outcome.message else "is kept there")
    assert was_killed(outcome), (outcome, history)
    return "killed"


def turn(
    both: tuple[Server, Server], out: Path, kinds: tuple[JobKind, JobKind], chance: random.Random, history: list[str]
) -> tuple[Outcome, Outcome]:
    """Start both at the same moment, kill some of them, and wait for both ends."""
    for server, kind in zip(both, kinds, strict=True):
        begin(server, out, kind, chance)
    volleys = [(chance.uniform(0.0, 0.8), chance.choice([0, 1]), chance.choice(VOLLEYS)) for _ in range(2)]
    waited = 0.0
    for moment, which, volley in sorted(volleys, key=lambda one: one[0])[: chance.choice([0, 1, 1, 2])]:
        both[which].ends_within(moment - waited)
        waited = moment
        history.append(f"after {moment:.3f} s {[one.name for one in volley]} for {which}")
        for number in volley:
            both[which].send(number)
    return both[0].outcome(), both[1].outcome()


def test_two_processes_in_a_folder_get_their_own_numbers_or_a_refusal(
    tmp_path: Path,
    servers: tuple[Server, Server],
    server: Server,
    referee: Referee,
    chance: random.Random,
    tally: Counter[str],
    request: pytest.FixtureRequest,
) -> None:
    for number in range(request.config.getoption("rounds")):
        kinds, out = pair(chance), tmp_path / str(number)
        wanted = [referee.wanted(kind) for kind in kinds]
        history = [f"round {number}: {kinds}"]
        for _ in range(TURNS):
            outcomes = turn(servers, out, kinds, chance, history)
            for which in (0, 1):
                word = judge(outcomes[which], wanted[which], history)
                assert not outcomes[which].warnings, (outcomes[which], history)
                history.append(f"{which} {word}")
                tally[f"calls beside another process: {word}"] += 1
        alone = [server.run("campaign:perform", out=str(out), kind=asdict(kind)) for kind in kinds]
        words = [judge(outcome, right, history) for outcome, right in zip(alone, wanted, strict=True)]
        assert words.count("completed") == (2 if kinds[0] == kinds[1] else 1), (words, history)
        assert sorted(path.name for path in out.iterdir()) == CLEAN, history
        tally["rounds of two processes in one folder"] += 1
    assert not list(servers[1].temporary.iterdir())


def test_a_process_that_is_killed_gives_its_folder_to_the_next_at_once(
    tmp_path: Path, servers: tuple[Server, Server], referee: Referee
) -> None:
    kind = KINDS["mlp in waves"]
    for number, moment in enumerate((0.1, 0.3, 0.5)):
        out = tmp_path / str(number)
        servers[1].call("campaign:perform", out=str(out), kind=asdict(kind))
        servers[1].ends_within(moment)
        servers[1].send(KILL)
        servers[1].outcome()
        found = servers[0].run("campaign:perform", out=str(out), kind=asdict(kind))
        assert judge(found, referee.wanted(kind), []) == "completed", found
