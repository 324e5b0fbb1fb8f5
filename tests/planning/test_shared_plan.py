"""Plans of jobs that several processes share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import cnn, gpt

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.planning.report import JobPlan


def planned(processes: int, batches: int = 480, **options: Any) -> JobPlan:
    with torch.device("meta"):
        model = GPT(GPTConfig(vocabulary=512, context=32, layers=2, heads=2, width=32))
        data = [(torch.zeros(8, 32, dtype=torch.long), torch.zeros(8, 32, dtype=torch.long))]
    settings = {"steps": 10, "probes": 4, "device": "a100-80gb", "precision": "tf32", **options}
    return he.plan(model, he.losses.causal_lm, "module", data=data, batches=batches, processes=processes, **settings)


def test_eight_gpus_take_an_eighth_of_the_hours_and_the_sums() -> None:
    one, eight = (planned(processes, memory=40 << 20) for processes in (1, 8))
    sums = eight.prediction.parts["sums over processes"]
    assert (eight.processes.probes, eight.processes.data) == (1, 8)
    passes = [plan.prediction.parts["second backwards"].seconds for plan in (one, eight)]
    assert passes[1] == pytest.approx(passes[0] / 8, rel=0.02)
    replicated = one.prediction.parts["reorthogonalisation"].seconds
    # More of an eighth of the graphs stay; streams are orthogonalised by everybody.
    assert 0.95 * one.seconds / 8 < eight.seconds < one.seconds / 8 + 2 * replicated + sums.seconds
    assert sums.limit == "network" and sums.bytes > 0 and "sums over processes" not in one.prediction.parts
    assert "processes: 8 such devices, 1 group(s) of streams x 8 part(s) of the data" in eight.summary()
    assert "processes:" not in one.summary()
    assert eight.record()["processes"] == {"probes": 1, "data": 8}


def test_groups_have_their_own_streams() -> None:
    one, four = (planned(processes, batches=4, steps=6, probes=8) for processes in (1, 4))  # all graphs stay
    assert four.processes.probes == 4
    assert sum(one.job.products.values()) / 4 <= sum(four.job.products.values()) < sum(one.job.products.values()) / 3
    assert "sums over processes" not in four.prediction.parts


def test_one_batch_is_cut_for_two_processes() -> None:
    two = planned(2, batches=1, tolerance={"w1": 0.1}, steps=None, probes=None)
    assert two.processes.size == 2
    assert two.flop == pytest.approx(
        planned(1, batches=1, tolerance={"w1": 0.1}, steps=None, probes=None).flop / 2, rel=0.05
    )


@pytest.mark.parametrize("processes", [0, 1.5, "two"])
def test_processes_are_a_whole_number(processes: Any) -> None:
    case = gpt()
    with pytest.raises(ConfigurationError, match="processes=.* must be a whole number of at least 1"):
        he.plan(case.model, case.loss, data=case.data, processes=processes)


@pytest.mark.parametrize("processes", [101, 10**30])
def test_more_processes_than_there_is_work_are_refused(processes: int) -> None:
    case = cnn()
    with pytest.raises(ConfigurationError, match="is more than can share this job"):
        he.plan(case.model, case.loss, data=case.data, steps=2, probes=1, processes=processes, device="a100-80gb")
