"""Operations without second derivative, and the suspects of a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Once
from patients import Model, examine, only, points_at
from torch import Tensor


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (Once.apply, "Once"),
        (lambda x: torch.cdist(x, x.cos()) @ torch.ones(len(x), 8), "Cdist"),
    ],
)
def test_an_operation_without_second_derivative_is_named_with_module_and_line(function: Any, operation: str) -> None:
    finding = only(examine(Model(function)), "no-second-derivative")
    assert finding.severity == "error" and finding.message.startswith(operation) and finding.fix
    assert finding.module == "inner"
    assert points_at(finding, "cdist" if operation == "Cdist" else "the line that findings point to")


def test_all_operations_without_second_derivative_are_found() -> None:
    def both(x: Tensor) -> Tensor:
        losses = F.ctc_loss(x[:, None].log_softmax(-1), torch.tensor([[1]]), (len(x),), (1,))
        return Once.apply(x * losses)

    def distances(x: Tensor) -> Tensor:
        near = torch.cdist(x, x.cos())
        return (near + torch.cdist(x, x.sin())) @ torch.ones(len(x), 8)

    lines = {f.line for f in examine(Model(distances)).findings if f.code == "no-second-derivative"}
    assert len(lines) == 2
    report = examine(Model(both))
    named = [f.message.partition(" ")[0] for f in report.findings if f.code == "no-second-derivative"]
    assert sorted(named) == ["CtcLoss", "Once"]


def test_detach_inside_the_model_is_a_suspect() -> None:
    finding = only(examine(Model(lambda x: x * x.detach())), "wrong-second-derivative")
    assert "detach at" in finding.message and "test_operations.py" in finding.message


def test_compiled_modules_and_functions_are_named() -> None:
    model = Model()
    model.inner = torch.compile(model.inner, backend="aot_eager")
    report = examine(model)
    assert only(report, "compiled-module").module == "inner"
    assert all(not check.wrong for check in report.blocks) and len(report.blocks) == 5
    report = examine(Model(torch.compile(lambda x: x.sin(), backend="aot_eager")))
    assert only(report, "compiled-module").module == "inner"
