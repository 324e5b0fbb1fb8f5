"""Blocks whose second derivative is wrong, and blocks that have none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Frozen, Sound
from patients import Model, examine, loss, only
from torch import Tensor, nn

import hvp_engine as he


def test_a_silently_wrong_derivative_names_blocks_and_suspects() -> None:
    report = examine(Model(lambda x: Sound.apply(Frozen.apply(x))))
    finding = only(report, "wrong-second-derivative")
    assert "first.weight, first.bias;" in finding.message
    assert finding.message.index("Frozen (module 'inner'") < finding.message.index("Sound (module 'inner'")
    assert {check.name: check.wrong for check in report.blocks}["second.weight"] is False
    assert "wrong" in str(report)


@pytest.mark.parametrize("inner", [torch.float32, torch.bfloat16])
def test_kinks_and_narrow_inner_arithmetic_are_no_errors(inner: torch.dtype) -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.to(inner)
            return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-3)).to(x.dtype)

    assert examine(Model(F.relu)).ok
    assert examine(Model(Narrow())).ok


def test_blocks_without_curvature_and_unused_parameters() -> None:
    model = Model()
    model.spare = nn.Parameter(torch.ones(3))
    report = examine(model, lambda m, b: loss(m, b) + m.second.bias.sum() * 0 + m.spare.sum())
    assert report.ok and "(spare)" in only(report, "zero-curvature").message
    report = examine(model)
    assert report.ok and "(spare)" in only(report, "unused-parameter").message


def test_a_bias_that_softmax_cancels_is_flat_not_wrong() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    block = he.Block("key bias", [("0.self_attn.in_proj_bias", slice(8, 16))])
    model = nn.Sequential(layer, nn.Linear(8, 3))
    data = [(torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 1]))]
    report = he.doctor(
        model, lambda m, b: F.cross_entropy(m(b[0]).mean(1), b[1]), [block, "0.linear1.weight"], data=data
    )
    assert report.ok and "(key bias)" in only(report, "zero-curvature").message
