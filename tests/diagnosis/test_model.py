"""What modules and parameters tell without being run."""

from __future__ import annotations

import copy

import torch
from custom_functions import Once
from patients import Model, codes, examine, only
from problems import gpt, mlp
from torch import nn

import hvp_engine as he


def test_dropout_and_batchnorm_are_named_and_the_rest_is_examined_too() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Model(Once.apply).inner, nn.Linear(6, 3))
    before = copy.deepcopy(model.state_dict())
    report = examine(model)
    assert only(report, "dropout-active").module == "2"
    assert only(report, "batchnorm-train").module == "1"
    assert only(report, "no-second-derivative").module == "3"
    assert "random-loss" not in codes(report)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert examine(nn.Sequential(*list(model)[:3], nn.Linear(6, 3)).eval()).ok


def test_tied_frozen_and_low_precision_parameters() -> None:
    case = gpt()
    case.model.ln_f.weight.requires_grad_(False)
    report = he.doctor(case.model, case.loss, data=case.data)
    assert report.ok
    assert "lm_head.weight is tied to wte.weight" in only(report, "tied-parameter").message
    assert "ln_f.weight" in only(report, "frozen-parameter").message
    half = mlp()
    data = [(x.bfloat16(), y) for x, y in half.data]
    report = he.doctor(half.model.to(torch.bfloat16), half.loss, data=data)
    finding = only(report, "low-precision")
    assert report.ok and finding.severity == "warning" and "6 parameter(s) are bfloat16" in finding.message
