"""Models in other forms than plain modules: scripted, traced, captured, exported."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from custom_functions import Frozen
from patients import DATA, X, loss
from torch import Tensor, nn

import hvp_engine as he

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")


class Outer(nn.Module):
    """A plain module around a scripted one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.inner = nn.Linear(5, 5), torch.jit.script(inner)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(torch.tanh(self.first(x)))
        return logits


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 3))


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, X),
    "captured": torch.fx.symbolic_trace,
    "exported": lambda model: torch.export.export(model, (X,)).module(),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_form_of_a_model_is_fit_and_has_the_same_hessian(form: str) -> None:
    other = FORMS[form](copy.deepcopy(plain()))
    assert he.doctor(other, loss, data=DATA, seconds=3).ok
    vectors = {"full": torch.randn(2, sum(p.numel() for p in other.parameters()))}
    found, expected = (he.hvp(model, loss, vectors, data=DATA)["full"] for model in (other, plain()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_modules_around_a_scripted_one_are_still_named() -> None:
    assert he.doctor(Outer(plain()), loss, data=DATA, seconds=3).ok

    class Faulty(Outer):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = Frozen.apply(self.inner(torch.tanh(self.first(x))))
            return logits

    report = he.doctor(Faulty(plain()), loss, data=DATA, seconds=3)
    assert "wrong-second-derivative" in [finding.code for finding in report.findings]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_modules_are_refused_by_name_and_quantised_buffers_are_not() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)
    vectors = {"full": torch.ones(1, 8)}
    with pytest.raises(he.HvpEngineError, match=r"quantised modules \(0, 0\._packed_params, 3"):
        he.hvp(quantised, loss, vectors, data=DATA)

    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.register_buffer("table", torch.quantize_per_tensor(torch.randn(5, 4), 0.1, 0, torch.qint8))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x @ self.table.dequantize())
            return logits

    model = Buffered()
    vectors = {"full": torch.randn(1, 15)}
    features = X @ model.table.dequantize()
    found = he.hvp(model, loss, vectors, data=DATA)["full"]
    expected = he.hvp(model.head, loss, vectors, data=[(features, DATA[0][1])])["full"]
    torch.testing.assert_close(found, expected)
    with pytest.raises(he.HvpEngineError, match="hold a quantised tensor"):
        he.plan(model, loss, data=DATA, steps=2)
