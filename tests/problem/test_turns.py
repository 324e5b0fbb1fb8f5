"""Threads that compute with one model take turns, and nobody sees another one's clones or moved parameters."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.operators.derivative_check import DerivativeCheck

DATA = [(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2]))]


class Counting(nn.Module):
    """A network that writes to a buffer, a list and a number, and makes a module at its first call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5))
        self.seen: list[Tensor] = []
        self.calls = 0
        self.late: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        self.late = self.late or nn.PReLU(5)
        self.mean.mul_(0.5).add_(hidden.detach().mean(0))
        self.seen.append(hidden.detach())
        self.calls += 1
        found: Tensor = self.last(self.late(hidden) + 0.1 * self.mean)
        return found


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads; return what they give, or raise."""
    found: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            found[number] = calls[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_that_share_a_model_all_get_the_right_numbers() -> None:
    model = Counting()
    vectors = {"full": torch.ones(1, 43)}

    def product() -> Tensor:
        return he.hvp(model, loss, vectors, data=DATA)["full"]

    def spectrum() -> Any:
        return he.slq(model, loss, data=DATA, steps=4, probes=1, progress=False)["full"].nodes.tolist()

    product_alone, spectrum_alone = product(), spectrum()
    found = together(product, spectrum, lambda: he.doctor(model, loss, data=DATA), product, spectrum)
    assert [str(value) for value in found if isinstance(value, BaseException)] == []
    assert all(torch.equal(value, product_alone) for value in (found[0], found[3]))
    assert found[1] == found[4] == spectrum_alone
    assert [str(finding) for finding in found[2].findings if finding.severity == "error"] == []
    assert model.calls == len(model.seen) == 0
    assert not model.mean.any()


def test_examinations_in_two_threads_leave_the_process_as_it_was() -> None:
    before = warnings.filters, list(warnings.filters), torch.is_anomaly_enabled()
    reports = together(*(lambda: he.doctor(Counting(), loss, data=DATA) for _ in range(3)))
    assert [report.ok for report in reports] == [True] * 3
    assert warnings.filters is before[0]
    assert (list(warnings.filters), torch.is_anomaly_enabled()) == before[1:]
    with pytest.warns(UserWarning, match="still shown"):
        warnings.warn("still shown", UserWarning, stacklevel=1)


def test_the_callers_parameters_never_move_while_derivatives_are_tested() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(DATA[0][0].double(), DATA[0][1])]
    memory = [parameter.detach().numpy() for parameter in model.parameters()]
    known = [array.copy() for array in memory]
    moved = []

    def watching(module: nn.Module, batch: Any) -> Tensor:
        moved.append(any((array != before).any() for array, before in zip(memory, known, strict=True)))
        return loss(module, batch)

    he.slq(model, watching, data=data, precision="fp64", steps=2, probes=1, progress=False)
    assert len(moved) > 4
    assert not any(moved)
    for parameter, array in zip(model.parameters(), memory, strict=True):
        np.add(array, 1.0, out=array)  # still the same memory
        assert parameter.detach().numpy()[0].tolist() == array[0].tolist()


@pytest.mark.parametrize("at", range(1, 5))
def test_an_interrupt_while_parameters_are_put_back_leaves_them_back(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(DATA[0][0].double(), DATA[0][1])]
    known = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    put_back, calls = DerivativeCheck._put_back, 0

    def interrupted(self: DerivativeCheck, saved: dict[str, Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            put_back(self, dict(list(saved.items())[: at - 1]))
            raise KeyboardInterrupt
        put_back(self, saved)

    monkeypatch.setattr(DerivativeCheck, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        he.slq(model, loss, data=data, precision="fp64", steps=2, probes=1, progress=False)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == known[name][0]
        assert torch.equal(tensor, known[name][1])
