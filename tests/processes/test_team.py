"""Processes find each other, agree, add up in a fixed order, and learn why one of them ended."""

from __future__ import annotations

import pytest
import torch
from ranks import Launcher

from hvp_engine.errors import ConfigurationError
from hvp_engine.processes.joining import joined
from hvp_engine.processes.team import ALONE


@pytest.mark.parametrize(("world", "axes"), [(2, {"data": 2}), (3, {"data": 3}), (4, {"probes": 2, "data": 2})])
@pytest.mark.parametrize("shape", [[1], [5, 7], [1000, 13]])
def test_sums_are_taken_in_the_order_of_ranks(
    launcher: Launcher, world: int, axes: dict[str, int], shape: list[int]
) -> None:
    found = launcher.values(world, "team_jobs:sums", shape=shape, axes=axes)
    members = axes["data"]
    for rank, (_, total, numbers) in enumerate(found):
        group = [mine for mine, _, _ in found[rank // members * members :][:members]]
        expected = group[0].clone()
        for mine in group[1:]:
            expected += mine
        assert torch.equal(total, expected)
        ranks = range(rank // members * members, rank // members * members + members)
        assert numbers == [sum(0.1 * r for r in ranks), float(members)]


def test_sums_longer_than_a_message_are_those_of_shorter_ones(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, total, _), (second, *_) = launcher.values(2, "team_jobs:sums", shape=[9_000_001], axes={"data": 2})
    assert torch.equal(total, first + second)


def test_processes_agree_and_the_first_speaks(launcher: Launcher) -> None:
    found = launcher.values(3, "team_jobs:agreement")
    assert found == [["said by 0", [0, 1, 2], 3, rank == 0] for rank in range(3)]


def test_an_error_of_the_first_process_is_everybodys(launcher: Launcher) -> None:
    for rank in launcher.run(2, "team_jobs:first_fails"):
        assert (rank.error, rank.message) == ("HvpEngineError", "The first one cannot.")


def test_one_process_is_alone() -> None:
    for asked in (None, "auto", {"probes": 1, "data": 1}, {"data": 1}):
        with joined(asked, torch.device("cpu")) as team:
            assert team is ALONE


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("all", "distributed='all' is neither None nor 'auto'"),
        ({"probes": 0}, "neither None nor 'auto'"),
        ({"probes": 1.5}, "neither None nor 'auto'"),
        ({"streams": 2}, "neither None nor 'auto'"),
        ({}, "neither None nor 'auto'"),
        ({"data": 2}, "takes 2 processes, and this is one process: start the job by torchrun --nproc-per-node N"),
        ({"probes": 2, "data": 4}, "takes 8 processes, and this is one process"),
    ],
)
def test_an_arrangement_that_cannot_be_is_refused(asked: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message), joined(asked, torch.device("cpu")):  # type: ignore[arg-type]
        pytest.fail("it was taken")
