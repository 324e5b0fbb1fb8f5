"""The setting that fits, and what is said where none does."""

from __future__ import annotations

import pytest
import torch
from problems import gpt
from torch import nn

import hvp_engine as he
from hvp_engine.errors import OutOfMemoryError


def test_the_setting_is_the_one_that_the_engine_takes() -> None:
    case = gpt()
    block = ["layers.0.attn.wq.weight"]
    whole = he.HessianOperator(case.model, case.loss, block, data=case.data).scheduler.plan.graph_bytes
    asked = {"data": case.data, "steps": 6, "probes": 8, "memory": int(1.75 * whole)}
    used = he.slq(case.model, case.loss, block, **asked, progress=False).manifest["plan"]
    planned = he.plan(case.model, case.loss, block, device="cpu", **asked).setting
    assert planned.microbatch == used["microbatch"] < 3
    assert len(planned.waves) == used["waves"] > 1


def test_a_basis_that_does_not_fit_shrinks_or_is_refused_with_the_ways_out() -> None:
    with torch.device("meta"):
        model = nn.Linear(10_000, 10_000, bias=False)
        data = [torch.empty(64, 10_000)]

    def loss(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return m(batch).tanh().square().mean()

    narrow = he.plan(model, loss, data=data, device="v100-32gb", steps=80, probes=2)
    assert narrow.setting.basis == "bf16" and any("basis='bf16'" in note for note in narrow.notes)
    assert len(narrow.setting.waves) == 2
    with pytest.raises(OutOfMemoryError, match=r"One stream of block 'full' .* Use basis='auto', .*fewer steps"):
        he.plan(model, loss, data=data, device="v100-16gb")
    chosen = he.plan(model, loss, data=data, device="v100-16gb", steps=80, probes=2, basis="auto")
    assert chosen.setting.basis == "int8" and any("kept as int8 (8 bits with scales" in note for note in chosen.notes)
    away = he.plan(model, loss, data=data, device="v100-16gb", steps=80, probes=2, basis="auto", memory=5 << 30)
    assert away.setting.basis == "int8-offload" and away.setting.reads_from == "host memory"
    reads, resident = (p.prediction.parts["reorthogonalisation"] for p in (away, chosen))
    assert reads.seconds > 10 * resident.seconds and reads.limit == "host memory"
    with pytest.raises(OutOfMemoryError, match="The gradient graph of the smallest micro-batch needs about"):
        he.plan(model, loss, data=data, device="v100-16gb", memory=1000)
