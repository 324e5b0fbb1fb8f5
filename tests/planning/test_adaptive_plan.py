"""Plans of adaptive jobs: what is expected, what it may cost at most, and what the engine then takes."""

from __future__ import annotations

import json

import pytest
import torch
from planned import small_gpt
from problems import mlp

import hvp_engine as he

DEVICE = "a100-80gb"


def planned(**options: object) -> he.JobPlan:
    model, data = small_gpt()
    return he.plan(model, he.losses.causal_lm, data=data, device=DEVICE, **options)


def test_an_adaptive_job_has_a_price_that_is_expected_and_one_at_most() -> None:
    adaptive, fixed = planned(), planned(steps=100, probes=10)
    assert adaptive.worst is not None
    assert fixed.worst is None
    assert adaptive.job.products == {"full": 94}
    ratio = 94 / 1000
    assert adaptive.prediction.blocks["full"].flop == pytest.approx(ratio * fixed.prediction.blocks["full"].flop)
    whole = adaptive.worst.blocks["full"].flop / fixed.prediction.blocks["full"].flop
    assert whole == pytest.approx(1.1)  # single products up to the number of steps
    assert adaptive.flop < adaptive.worst.flop / 10
    assert adaptive.seconds < adaptive.worst.seconds / 2  # passes of one vector wait for their launches


def test_a_larger_tolerance_and_lower_ceilings_are_cheaper() -> None:
    usual, rough, short = planned(), planned(tolerance=0.2), planned(tolerance=0.02, steps=20, probes=2)
    assert rough.flop < usual.flop > short.flop
    assert rough.worst is not None and short.worst is not None and usual.worst is not None
    assert rough.worst.flop == usual.worst.flop > short.worst.flop


def test_graphs_are_built_once_for_the_streams_that_go_together() -> None:
    plan = planned(blocks={"small": ["layers.0.attn.wq.weight"], "large": ["*"]})
    work = plan.job.work
    assert work["small"].probes > work["large"].probes == 1
    assert plan.setting.sweeps == (work["large"].steps + 1, work["small"].steps)
    assert plan.setting.waves == ({"small": 1, "large": 1}, {"small": work["small"].probes - 1})


def test_text_and_record_say_what_is_expected_and_at_most() -> None:
    plan = planned(blocks={"norm": ["ln_f.weight"], "all": ["*"]}, tolerance={"w1": 0.02, "js": 0.05})
    first, second = plan.summary().splitlines()[:2]
    assert " expected, " in first and " at most, " in first
    assert second == (
        "products: 126 with 2 block(s) expected for a tolerance of w1=0.02 js=0.05 (1 probe(s) of 90 steps, "
        "1 block(s) exactly), at most 100 steps x 10 probes"
    )
    record = json.loads(json.dumps(plan.record()))
    assert record["job"]["products"] == {"norm": 32, "all": 94}
    assert record["job"]["tolerance"] == {"js": 0.05, "w1": 0.02}
    assert record["worst"]["flop"] > record["flop"] and record["worst"]["seconds"] > record["seconds"]
    fixed = planned(steps=7)
    assert "products: 70 with 1 block(s), 7 steps x 10 probes" in fixed.summary()
    assert fixed.record()["worst"] is None


def test_the_engine_takes_the_products_that_were_planned_for_small_blocks() -> None:
    case = mlp()
    plan = he.plan(case.model, case.loss, "parameter", data=case.data, device="cpu")
    found = he.slq(case.model, case.loss, "parameter", data=case.data, progress=False).manifest
    taken = {name: block["products"] for name, block in found["adaptive"]["blocks"].items()}
    assert taken == plan.job.products == {name: p.numel() for name, p in case.model.named_parameters()}
    assert len(plan.setting.waves) == found["plan"]["waves"] == 1
    assert plan.calibrated and torch.isfinite(torch.tensor(plan.worst.seconds))  # type: ignore[union-attr]
