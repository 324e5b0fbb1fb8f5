"""The doctor as a whole: what it takes, what it leaves as it was, randomness, losses and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from custom_functions import Sound
from patients import DATA, Model, X, codes, examine, loss, only

import hvp_engine as he


def test_a_sound_model_is_fit() -> None:
    report = examine(Model(Sound.apply))
    assert report.ok and not report.findings
    assert [check.name for check in report.blocks][1:] == ["first.weight", "first.bias", "second.weight", "second.bias"]
    for check in report.blocks:
        assert not check.wrong and check.asymmetry < 1e-12 and check.finite_difference < 1e-6 and check.curvature > 0
    assert report.samples == 4 and report.replaced == ["cross_entropy"]


def test_blocks_may_be_left_out_and_so_may_data() -> None:
    report = he.doctor(Model(), loss, data=DATA)
    assert report.ok and [check.name for check in report.blocks] == ["full"]
    assert he.doctor(Model(), lambda m: loss(m, DATA[0]), ["first.weight"]).ok
    assert he.doctor(Model(), loss, {"w": ["*.weight"]}, data=DATA).ok


@pytest.mark.parametrize("given", [DATA, [], X, {"x": X}, set(DATA), iter(DATA)])
def test_data_in_the_place_of_blocks_is_refused(given: Any) -> None:
    with pytest.raises(he.HvpEngineError, match=r"third argument of doctor is blocks.* pass data=\.\.\."):
        he.doctor(Model(), loss, given)


def test_losses_gradients_and_curvatures_that_are_not_finite() -> None:
    assert only(examine(Model(), lambda m, b: loss(m, b) * float("nan")), "loss-not-finite").severity == "error"
    report = examine(Model(), lambda m, b: loss(m, b) + (m(b[0]) * 0).pow(2).sum(1).sqrt().sum())
    assert "first.weight" in only(report, "gradient-not-finite").message
    report = examine(Model(), lambda m, b: loss(m, b) + (m(b[0]) * 0).abs().pow(1.5).sum())
    assert only(report, "curvature-not-finite")


def test_the_model_is_left_as_it_was() -> None:
    model = Model().double()
    before = copy.deepcopy(model.state_dict())
    he.doctor(model, loss, "parameter", data=[(X.double(), DATA[0][1])], precision="fp64")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_little_time_leaves_blocks_out_and_says_so() -> None:
    report = he.doctor(Model(), loss, "parameter", data=DATA * 3, seconds=0.0)
    assert report.ok and len(report.blocks) == 1
    assert {"blocks-not-reached", "data-partly-read"} <= set(codes(report))


def test_bad_arguments_are_raised() -> None:
    with pytest.raises(he.HvpEngineError, match="Did you mean"):
        examine(Model(), blocks=["first.wieght"])
    with pytest.raises(he.HvpEngineError, match=r"torch\.nn\.Module"):
        he.doctor("model", loss, data=DATA)  # type: ignore[arg-type]
    with pytest.raises(he.HvpEngineError, match="precision='fp16'"):
        he.doctor(Model(), loss, data=DATA, precision="fp16")  # type: ignore[arg-type]
