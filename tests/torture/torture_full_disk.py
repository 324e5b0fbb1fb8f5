"""A disk that is full: from the first file, from any later one, or in the middle of the work; then with more room."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import CLEAN, KINDS, JobKind, Numbers, Referee, same_bits
from forks import Outcome, Server

PAGE = 4096
ROOM = 16 << 20  # bytes, enough for any of the jobs
RESERVE = 1 << 20  # bytes that a job keeps back for its end, about
WRITING = ("mlp in waves", "gpt in waves", "head in memory", "head on disk", "head on disk, fp64")
SIZES = [*range(1, 40, 3), *range(40, 130, 10), *range(RESERVE // PAGE, RESERVE // PAGE + 60, 6)]  # pages


class Disk:
    """A file system of a size that can be changed; where none may be mounted, a limit to the size of files."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.file_limit: int | None = None
        self.mounted = self._mount(f"size={ROOM}")

    def resize(self, size: int) -> None:
        """Give it ``size`` bytes."""
        if self.mounted:
            assert self._mount(f"remount,size={max(size, PAGE)}")
        else:
            self.file_limit = None if size >= ROOM else size // 8

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.root)], check=True)  # also with a child in it

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.root)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


def close_to(first: Numbers, second: Numbers) -> bool:
    """The same but for the rounding of another way to pass through the head, which the first steps do not magnify."""
    return all(np.allclose(first[b]["alphas"][:, :2], second[b]["alphas"][:, :2], rtol=1e-3) for b in second)


def judge(outcome: Outcome, wanted: dict[str, Any]) -> str:
    """Say how a call on a small disk ended: with the right numbers, or an error that names the disk."""
    if outcome.value is None:
        assert outcome.error == "RunFolderError", outcome
        assert "disk is full" in outcome.message or "No space left" in outcome.message, outcome
        return "refused"
    if outcome.value["plan"]["head_curvature"] == wanted["plan"]["head_curvature"]:
        assert same_bits(outcome.value["numbers"], wanted["numbers"]), outcome
        return "completed"
    assert wanted["plan"]["head_curvature"] is not None, outcome  # there was no room for all of it
    assert close_to(outcome.value["numbers"], wanted["numbers"]), outcome
    return "completed with less of the head's curvature"


def call(server: Server, disk: Disk, out: Path, kind: JobKind) -> Outcome:
    return server.run("campaign:perform", out=str(out), kind=asdict(kind), file_limit=disk.file_limit)


def finish(server: Server, disk: Disk, out: Path, kind: JobKind, wanted: dict[str, Any], before: Outcome) -> Outcome:
    """Give the disk room and call again."""
    disk.resize(ROOM)
    last = call(server, disk, out, kind)
    assert last.value is not None, (last, before)
    assert not any("damaged" in warning for warning in last.warnings), (last, before)
    if "finishes without a step" in before.message:
        assert last.value["steps"] == 0, (last, before)
    if before.value is not None:
        assert last.value["steps"] == 0 and same_bits(last.value["numbers"], before.value["numbers"]), (last, before)
    judge(last, wanted)
    assert sorted(path.name for path in out.iterdir()) == CLEAN
    return last


@pytest.mark.parametrize("name", WRITING)
def test_a_disk_too_small_for_a_job_costs_no_bit_and_no_more_than_it_says(
    disk: Disk, name: str, server: Server, referee: Referee, tally: Counter[str], chance: random.Random
) -> None:
    kind = KINDS[name]
    wanted = referee.wanted(kind)
    words = []
    for pages in SIZES:
        out = disk.root / str(pages)
        disk.resize(pages * PAGE)
        outcome = call(server, disk, out, kind)
        words.append(judge(outcome, wanted))
        if outcome.value is None and chance.random() < 0.3:
            disk.resize(chance.randrange(pages, 2 * pages + 8) * PAGE)
            outcome = call(server, disk, out, kind)
            words.append(judge(outcome, wanted))
        finish(server, disk, out, kind, wanted, outcome)
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    for word in words:
        tally[f"calls on a disk that is too small: {word}"] += 1
    assert "refused" in words and "completed" in words


@pytest.mark.parametrize("name", WRITING)
def test_a_disk_that_becomes_full_during_a_job_costs_no_bit_and_no_more_than_it_says(
    disk: Disk, name: str, server: Server, referee: Referee, tally: Counter[str], chance: random.Random
) -> None:
    if not disk.mounted:
        pytest.skip("This machine lets nobody mount a file system.")
    kind = KINDS[name]
    wanted = referee.wanted(kind)
    for number in range(12):
        out = disk.root / str(number)
        ballast = disk.root / "ballast"
        server.call("campaign:perform", out=str(out), kind=asdict(kind))
        server.ends_within(chance.uniform(0.1, 0.8))
        fill(ballast)
        outcome = server.outcome()
        tally[f"calls on a disk that becomes full: {judge(outcome, wanted)}"] += 1
        ballast.unlink()
        finish(server, disk, out, kind, wanted, outcome)
        for path in out.iterdir():
            path.unlink()


def fill(ballast: Path) -> None:
    """Take all the room that a disk has."""
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            pass
