"""Operators by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hvp_engine as he
from hvp_engine.operators.registry import OPERATORS, operator_named


def test_every_operator_is_found_under_the_name_of_its_matrix() -> None:
    for name, kind in OPERATORS.items():
        assert operator_named(name) is kind
        assert kind.matrix == name


@pytest.mark.parametrize("name", ["Hessian", "", 3, None, ["hessian"]])
def test_a_name_that_is_none_is_refused_with_those_that_there_are(name: object) -> None:
    with pytest.raises(he.HvpEngineError, match=r"operator=.* is not one of 'hessian'"):
        he.slq(nn.Linear(2, 1), lambda model: model(torch.ones(1, 2)).square().mean(), operator=name, progress=False)  # type: ignore[arg-type]
