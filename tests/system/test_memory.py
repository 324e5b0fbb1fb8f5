"""Looking at what autograd saves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import mlp

import hvp_engine as he
from hvp_engine.system import memory


class Witness:
    """A hook, which lives as long as the graph of its tensor."""

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


@pytest.mark.parametrize("look", [lambda: memory.graph_size([]), memory.saved_dtypes])
@pytest.mark.parametrize("operation", [torch.tanh, torch.exp, torch.sigmoid, lambda x: torch.softmax(x, 0), torch.sin])
def test_a_graph_that_is_looked_at_has_its_derivatives_and_dies(
    look: Callable[[], Any], operation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64, requires_grad=True)

    def second() -> torch.Tensor:
        y = operation(x * 2.0)
        (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        witness = Witness()
        y.register_hook(witness)
        died.append(weakref.ref(witness))
        return torch.autograd.grad((first**2).sum(), x, retain_graph=True)[0]  # which would free what is saved

    died: list[weakref.ref[Any]] = []
    wanted = second()
    with look():
        found = second()
    gc.collect()
    assert torch.equal(found, wanted)
    assert [reference() for reference in died] == [None, None]


def test_calls_leave_no_graph_behind() -> None:
    case = mlp()
    vectors = {"full": torch.ones(1, sum(parameter.numel() for parameter in case.model.parameters()))}

    def call() -> int:
        he.hvp(case.model, case.loss, vectors, data=case.data)
        he.doctor(case.model, case.loss, data=case.data, seconds=0.5)
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    call()
    before = call()
    for _ in range(3):
        call()
    assert call() <= before


def test_processes_of_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available", lambda: 1000)
    whole = memory.budget(torch.device("cpu"))
    with memory.shared_by(4):
        assert memory.budget(torch.device("cpu")) == whole // 4
    assert memory.budget(torch.device("cpu")) == whole
