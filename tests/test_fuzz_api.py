"""Hundreds of bad calls: each ends in an error of the package's own, or in the right numbers."""

from __future__ import annotations

import copy
import inspect
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bad_inputs import ARGUMENTS, SIZE, batch, mean_loss, net
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import hvp_engine as he
from hvp_engine.errors import HvpEngineError

CALLS = 50  # of each entry
SECONDS = 20  # that one call may take; a hang is a failure
ENTRIES: dict[str, Callable[..., Any]] = {
    "hvp": he.hvp,
    "slq": he.slq,
    "doctor": he.doctor,
    "plan": he.plan,
    "data_error": he.data_error,
    "dense": he.dense,
    "off_diagonal": he.off_diagonal,
    "eigsh": he.eigsh,
    "trace": he.trace,
    "diagonal": he.diagonal,
    "norms": he.norms,
    "gradients": he.gradients,
}
FEW: dict[str, dict[str, Any]] = {
    "hvp": {},
    "slq": {"steps": 3, "probes": 2, "progress": False},
    "doctor": {"seconds": 0.2},
    "plan": {"steps": 3, "probes": 2, "batches": None},
    "data_error": {"progress": False},
    "dense": {"progress": False},
    "off_diagonal": {"blocks": "parameter", "probes": 2, "progress": False},
    "eigsh": {"k": 2, "progress": False},
    "trace": {"products": 8, "progress": False},
    "diagonal": {"products": 8, "progress": False},
    "norms": {"products": 8, "progress": False},
    "gradients": {},
}


def valid(entry: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": net(), "loss": mean_loss, "data": [batch(), batch(seed=2)], **FEW[entry]}
    if entry == "hvp":
        arguments["vectors"] = {"full": torch.linspace(-1, 1, SIZE).expand(2, SIZE)}
    return arguments


def draw(entry: str, number: int) -> tuple[dict[str, Any], str]:
    """Draw one call with one or two bad arguments, and words for it."""
    dice = random.Random(list(ENTRIES).index(entry) + 7 * number)  # a new entry leaves the others' calls as they are
    arguments = valid(entry)
    known = [name for name in ARGUMENTS if name in inspect.signature(ENTRIES[entry]).parameters]
    chosen = dice.sample(known, 1 if dice.random() < 0.8 else 2)
    picks = {name: dice.randrange(len(ARGUMENTS[name])) for name in chosen}
    arguments |= {name: ARGUMENTS[name][pick]() for name, pick in picks.items()}
    return arguments, f"{entry} with {picks}"


class Late(BaseException):
    """A call that takes too long."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def products(model: nn.Module, loss: Any, data: Any, vectors: Tensor) -> Tensor:
    """Products of vectors with the mean loss's Hessian, by double backward in fp64."""
    wide = copy.deepcopy(model).double()
    parameters = list(wide.parameters())
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for piece in data:
        value = loss(wide, (torch.as_tensor(piece[0]).double(), torch.as_tensor(piece[1])))
        value, part = value if isinstance(value, tuple) else (len(piece[0]) * value, len(piece[0]))  # a mean of samples
        total, weight = total + value, weight + float(part)
    gradients = torch.autograd.grad(total / weight, parameters, create_graph=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rows = [torch.autograd.grad(flat @ vector.double(), parameters, retain_graph=True) for vector in vectors]
    return torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])


def state(model: Any) -> dict[str, Tensor] | None:
    if not isinstance(model, nn.Module) or any(is_lazy(value) for value in model.parameters()):
        return None
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("number", range(CALLS))
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_bad_call_ends_in_an_error_of_ours_or_in_the_right_numbers(
    entry: str, number: int, alarm: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = draw(entry, number)
    before, generator = state(arguments["model"]), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = ENTRIES[entry](**arguments)
        except HvpEngineError as error:
            assert str(error).strip(), words
            found = None
    if before is not None and not any(value.is_meta for value in before.values()):
        after = arguments["model"].state_dict()
        assert all(torch.equal(value.nan_to_num(), after[name].nan_to_num()) for name, value in before.items()), words
    assert torch.equal(generator, torch.get_rng_state()), words
    if entry == "hvp" and found is not None:
        check(found, arguments, words)


def check(found: dict[str, Tensor], arguments: dict[str, Any], words: str) -> None:
    """Compare a product that was given with the reference, where the job is one that it can compute."""
    assert all(bool(torch.isfinite(value).all()) for value in found.values()), words
    known = arguments.get("operator", "hessian") == "hessian" and arguments.get("blocks") is None
    if not known or not isinstance(arguments.get("vectors"), dict):
        return
    vectors = torch.as_tensor(arguments["vectors"].get("full", torch.empty(0, SIZE)))
    vectors = vectors.to_dense() if vectors.is_sparse else vectors
    if found and vectors.numel():
        data = iter(arguments["data"])  # which may lie about its length
        right = products(arguments["model"], arguments["loss"], data, vectors)
        tolerance = 1e-4 if arguments.get("precision", "fp32") in ("fp32", "tf32", "fp64") else 3e-2
        assert torch.allclose(
            found["full"].double(), right, rtol=tolerance, atol=tolerance * float(right.abs().max())
        ), words
