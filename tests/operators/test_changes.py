"""Changes between products and during a job: of parameters, buffers, modes, data and loss, however they are made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, NonDeterministicError
from hvp_engine.krylov.lanczos import BatchedLanczos

VECTORS = {"full": torch.ones(1, 43)}


class Scaled(nn.Module):
    """A network with a buffer and a plain number in its function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.factor = nn.Linear(4, 5), nn.Linear(5, 3), 1.0
        self.act, self.gains = nn.Tanh(), [torch.ones(()), torch.ones((), requires_grad=True)]
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.act(self.first(x)), 0.0, self.training)
        found: Tensor = self.last(hidden) * self.scale * self.factor * self.gains[0] * self.gains[1]
        return found


def batches() -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(6, 4), torch.randint(0, 3, (6,))) for _ in range(3)]


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def dense_product(model: nn.Module, data: list[Any]) -> Tensor:
    twin = copy.deepcopy(model).double()
    parameters = list(twin.parameters())
    total = sum(mean_loss(twin, (x.double(), y)) for x, y in data) / len(data)
    gradients = torch.autograd.grad(total, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    return torch.cat([r.reshape(-1) for r in torch.autograd.grad(flat.sum(), parameters)])[None]


def train_a_step(model: Scaled) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    mean_loss(model, batches()[0]).backward()
    optimiser.step()
    optimiser.zero_grad()


def through_numpy(model: Scaled) -> None:
    model.first.weight.detach().numpy()[:] *= 2


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "an optimiser's step": train_a_step,
    ".data": lambda m: m.first.weight.data.mul_(2),
    ".data of one entry": lambda m: m.last.bias.data[1].add_(0.5),
    "assigned .data": lambda m: setattr(m.first.weight, "data", m.first.weight.data * 2),
    "numpy": through_numpy,
    "a new parameter": lambda m: setattr(m.first, "weight", nn.Parameter(m.first.weight.detach() * 2)),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
    "a buffer": lambda m: m.scale.mul_(2),
    "a buffer's .data": lambda m: m.scale.data.mul_(2),
    "a new buffer": lambda m: setattr(m, "scale", torch.tensor(3.0)),
    "a tensor in a list": lambda m: m.gains[0].mul_(2),
    "a leaf that is no parameter": lambda m: m.gains[1].data.mul_(2),
    "another tensor in a list": lambda m: m.gains.__setitem__(0, torch.tensor(2.0)),
    "an attribute": lambda m: setattr(m, "factor", 2.0),
    "a module": lambda m: setattr(m, "act", nn.Sigmoid()),
    "a method": lambda m: setattr(m.act, "forward", torch.sin),
    "a forward hook": lambda m: m.act.register_forward_hook(lambda module, args, output: output * 2),
}
UNNAMED = ("an attribute", "a new parameter", "a module", "a method", "a forward hook")  # seen by what comes of it


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("change", CHANGES)
def test_products_belong_to_the_model_as_it_is(change: str, precision: Any) -> None:
    model, data = Scaled(), batches()
    operator = he.HessianOperator(model, mean_loss, data=data, precision=precision)
    before = operator.matmat(VECTORS)["full"]
    CHANGES[change](model)
    found, wanted = operator.matmat(VECTORS)["full"].double(), dense_product(model, data)
    assert (before.double() - wanted).norm() > 1e-2 * wanted.norm()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_of_another_dtype_is_followed_too() -> None:
    model = Scaled().to(torch.bfloat16)
    operator = he.HessianOperator(model, mean_loss, data=batches())
    operator.matmat(VECTORS)
    with torch.no_grad():
        model.first.weight.mul_(2)
    widened = copy.deepcopy(model).float()
    torch.testing.assert_close(
        operator.matmat(VECTORS)["full"], he.hvp(widened, mean_loss, VECTORS, data=batches())["full"]
    )


def test_a_copy_that_cannot_follow_is_refused() -> None:
    model = Scaled()
    operator = he.HessianOperator(model, mean_loss, data=batches(), precision="fp64")
    model.first = nn.Linear(4, 6)
    with pytest.raises(ConfigurationError, match="make a new operator"):
        operator.matmat(VECTORS)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_frozen_block_is_refused_and_both_fixes_work(precision: Any) -> None:
    model, data = Scaled(), batches()
    operator = he.HessianOperator(model, mean_loss, data=data, precision=precision)
    known = operator.matmat(VECTORS)["full"]
    model.last.bias.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"no longer require gradients: last\.bias"):
        operator.matmat(VECTORS)
    assert he.HessianOperator(model, mean_loss, data=data, precision=precision).numel == {"full": 40}
    model.last.bias.requires_grad_(True)
    torch.testing.assert_close(operator.matmat(VECTORS)["full"], known)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_hooks_on_gradients_are_refused_when_they_come_later_too(precision: Any) -> None:
    model = Scaled()
    operator = he.HessianOperator(model, mean_loss, data=batches(), precision=precision)
    known = operator.matmat(VECTORS)["full"]
    handle = model.first.weight.register_hook(lambda gradient: gradient * 2)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"Gradient hooks are registered on first\.weight"):
            operator.matmat(VECTORS)
    handle.remove()
    torch.testing.assert_close(operator.matmat(VECTORS)["full"], known)


def test_activations_that_a_forward_pass_left_in_the_model_do_not_keep_it_from_being_copied() -> None:
    class Remembering(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            self.last_output = super().forward(x)
            return self.last_output

    model, data = Remembering(), batches()
    operator = he.HessianOperator(model, mean_loss, data=data, precision="fp64")
    operator.matmat(VECTORS)
    train_a_step(model)
    found = operator.matmat(VECTORS)["full"]
    plain = Scaled()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, dense_product(plain, data), rtol=1e-6, atol=1e-8)
    assert model.last_output.requires_grad


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_data_written_under_a_kept_graph_is_refused(precision: Any, kind: str) -> None:
    arrays = [x.numpy().copy() for x, _ in batches()]
    pairs = zip(arrays, batches(), strict=True)
    data = [(torch.from_numpy(array) if kind == "tensor" else array, y) for array, (_, y) in pairs]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mean_loss(model, (torch.as_tensor(batch[0]), batch[1]))

    operator = he.HessianOperator(Scaled(), loss, data=data, precision=precision)
    operator.matmat(VECTORS)
    arrays[1][0, 0] += 1.0
    with pytest.raises(NonDeterministicError, match="Batch 1 was overwritten"):
        operator.matmat(VECTORS)


def run_with(change: Callable[[], object], at: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Run a job during which something changes before a step."""
    step, steps = BatchedLanczos.step, 0

    def changing(self: BatchedLanczos) -> int:
        nonlocal steps
        if steps == at:
            change()
        steps += 1
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(BatchedLanczos, "step", changing)
        return he.slq(**{"steps": 6, "probes": 1, "progress": False, **options})


@pytest.fixture(params=["all graphs kept", "one graph kept"])
def keeps_all(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether graphs stay alive from sweep to sweep, or all but one are made anew."""
    if request.param == "one graph kept":
        monkeypatch.setattr("hvp_engine.scheduling.policy.count_kept_graphs", lambda *_: 1)
    return bool(request.param == "all graphs kept")


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in UNNAMED])
def test_a_change_during_a_job_ends_it_with_the_last_sound_state_saved(
    change: str, keeps_all: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, data = Scaled(), batches()
    options = {"loss": mean_loss, "data": data, "check": False}
    whole = he.slq(model, steps=6, probes=1, progress=False, **options)
    assert whole.manifest["plan"]["kept_graphs"] == (len(data) if keeps_all else 1)
    sound = whole["full"]
    untouched = copy.deepcopy(model)
    with pytest.raises(NonDeterministicError, match="The model changed during the job"):
        run_with(lambda: CHANGES[change](model), 3, monkeypatch, model=model, out=tmp_path / "run", **options)
    steps = 0
    original = BatchedLanczos.step

    def counting(self: BatchedLanczos) -> int:
        nonlocal steps
        steps += 1
        return original(self)

    monkeypatch.setattr(BatchedLanczos, "step", counting)
    resumed = he.slq(untouched, steps=6, probes=1, progress=False, out=tmp_path / "run", **options)["full"]
    assert steps == 3
    assert np.array_equal(resumed.nodes, sound.nodes)


@pytest.mark.parametrize("change", UNNAMED)
def test_a_change_of_the_function_during_a_job_ends_it(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled()
    with pytest.raises(NonDeterministicError, match="changed"):
        run_with(lambda: CHANGES[change](model), 3, monkeypatch, model=model, loss=mean_loss, data=batches())


def test_a_change_of_mode_during_a_job_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled().eval()
    with pytest.raises(NonDeterministicError, match="training"):
        run_with(model.train, 2, monkeypatch, model=model, loss=mean_loss, data=batches())


def test_a_write_that_changes_nothing_does_not_end_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled()
    sound = he.slq(model, mean_loss, data=batches(), steps=6, probes=1, progress=False)["full"].nodes

    def rewrite() -> None:
        with torch.no_grad():
            model.first.weight.copy_(model.first.weight.clone())

    found = run_with(rewrite, 3, monkeypatch, model=model, loss=mean_loss, data=batches())["full"].nodes
    assert np.array_equal(found, sound)


def test_data_overwritten_during_a_job_ends_it(keeps_all: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [x.numpy().copy() for x, _ in batches()]
    data = [(torch.from_numpy(array), y) for array, (_, y) in zip(arrays, batches(), strict=True)]
    words = "was overwritten" if keeps_all else "was overwritten|changed between sweeps"
    with pytest.raises(NonDeterministicError, match=rf"Batch \d ({words})"):
        run_with(lambda: arrays[2].fill(2.0), 3, monkeypatch, model=Scaled(), loss=mean_loss, data=data)


def test_a_loss_with_a_schedule_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = [1.0]
    monkeypatch.setattr("hvp_engine.scheduling.policy.count_kept_graphs", lambda *_: 1)
    with pytest.raises(NonDeterministicError, match=r"loss of batch \d changed between two sweeps"):
        run_with(
            lambda: factor.__setitem__(0, 1.001),
            3,
            monkeypatch,
            model=Scaled(),
            loss=lambda m, b: mean_loss(m, b) * factor[0],
            data=batches(),
        )
