"""Losses that draw random numbers: noticed every time, by every call; and nobody's generators are moved."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import Case, mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hvp_engine as he
from hvp_engine.errors import NonDeterministicError
from hvp_engine.problem.generators import HIGH, LOW, PythonSource, source_of
from hvp_engine.problem.randomness import fixed_numbers

RARE = 0.01
DRAWS: dict[str, Callable[[], float]] = {
    "python": random.random,
    "numpy": np.random.rand,
    "torch": lambda: float(torch.rand(())),
}
CALLS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "hvp": lambda m, loss, data: he.hvp(
        m, loss, {"full": torch.ones(1, sum(p.numel() for p in m.parameters()))}, data=data
    ),
    "slq": lambda m, loss, data: he.slq(m, loss, data=data, steps=2, probes=1, progress=False),
}


class LayerDrop(nn.Module):
    """A network that leaves a layer out one time in a hundred."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.draw = nn.Linear(5, 5), nn.Linear(5, 3), draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.draw() < RARE):
            x = x + torch.tanh(self.first(x))
        found: torch.Tensor = self.last(x)
        return found


def states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), tuple(rest), torch.get_rng_state().tolist()


@pytest.fixture
def another_thread() -> Iterator[None]:
    """A thread of the process that does nothing."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.fixture(params=["alone", "another_thread"])
def company(request: pytest.FixtureRequest) -> None:
    if request.param == "another_thread":
        request.getfixturevalue("another_thread")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("generator", DRAWS)
def test_a_layer_that_is_dropped_rarely_is_noticed_every_time(generator: str, call: str) -> None:
    case = mlp()
    for seed in range(4):
        model = LayerDrop(DRAWS[generator]).train()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = states()
        with pytest.raises(NonDeterministicError, match=r"random.*model\.eval\(\)"):
            CALLS[call](model, case.loss, case.data)
        assert states() == before
        CALLS[call](model.eval(), case.loss, case.data)  # as the message recommends
        assert states() == before


@pytest.mark.parametrize("generator", DRAWS)
def test_the_doctor_finds_a_layer_that_is_dropped_rarely(generator: str) -> None:
    case = mlp()
    report = he.doctor(LayerDrop(DRAWS[generator]).train(), case.loss, data=case.data, seconds=1)
    assert "random-loss" in [finding.code for finding in report.findings]
    assert not report.ok
    assert report.blocks  # the rest is examined with fixed numbers


@pytest.mark.parametrize("generator", DRAWS)
def test_rare_noise_in_a_loss_is_noticed_in_eval_mode_too(generator: str) -> None:
    case = mlp()
    with pytest.raises(NonDeterministicError, match="random"):
        CALLS["hvp"](case.model.eval(), lambda m, b: case.loss(m, b) * (1 + (DRAWS[generator]() < RARE)), case.data)


def test_generators_held_by_a_model_or_a_loss_are_watched() -> None:
    case = mlp()
    held = {
        "numpy": np.random.default_rng(0),
        "numpy's older": np.random.RandomState(0),
        "torch": torch.Generator(),
        "python": random.Random(0),
    }
    draws = {
        "numpy": lambda g: g.random(),
        "numpy's older": lambda g: g.rand(),
        "torch": lambda g: float(torch.rand((), generator=g)),
        "python": lambda g: g.random(),
    }

    def noisy(model: nn.Module, batch: Any, generator: Any = None, draw: Any = None) -> torch.Tensor:
        scaled: torch.Tensor = case.loss(model, batch) * (1 + (draw(generator) < RARE))
        return scaled

    for name, generator in held.items():
        source = source_of(generator)
        assert source is not None
        before = source.read()
        with pytest.raises(NonDeterministicError, match="random"):
            CALLS["hvp"](case.model.eval(), partial(noisy, generator=generator, draw=draws[name]), case.data)
        assert source.read() == before


@pytest.mark.usefixtures("company")
def test_numbers_that_are_drawn_and_not_used_do_no_harm() -> None:
    case = mlp()

    def wasteful(model: nn.Module, batch: Any) -> torch.Tensor:
        skip = model.training and random.random() < 0.5
        return case.loss(model, batch) * (2 if torch.rand(()) < 0 or np.random.rand() < 0 or skip else 1)

    found = CALLS["hvp"](case.model.eval(), wasteful, case.data)["full"]
    assert torch.equal(found, CALLS["hvp"](case.model, case.loss, case.data)["full"])


@pytest.mark.usefixtures("company")
def test_a_loss_that_seeds_its_numbers_itself_is_the_same_every_time() -> None:
    case = mlp()

    def seeded(model: nn.Module, batch: Any) -> torch.Tensor:
        torch.manual_seed(3)
        return F.cross_entropy(F.dropout(model(batch[0]), 0.2), batch[1])

    before = states()
    first, second = (CALLS["hvp"](case.model.train(), seeded, case.data[:1])["full"] for _ in range(2))
    assert torch.equal(first, second)
    assert states() == before


def test_drawing_modules_are_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.1 * torch.randn_like(x)

    case = mlp()
    with pytest.raises(NonDeterministicError, match=r"in 1\b"):
        CALLS["hvp"](nn.Sequential(case.model, Noisy()), case.loss, case.data)


def test_an_interrupted_evaluation_leaves_the_generators_alone() -> None:
    case = mlp()

    def interrupted(model: nn.Module, batch: Any) -> torch.Tensor:
        random.random()
        torch.rand(3)
        raise KeyboardInterrupt

    before = states()
    with pytest.raises(KeyboardInterrupt):
        CALLS["hvp"](case.model, interrupted, case.data)
    assert states() == before


def test_numbers_drawn_while_backward_hooks_are_looked_at_are_put_back() -> None:
    case = mlp()
    case.model[-1].register_full_backward_hook(lambda module, into, out: None)

    def wasteful(model: nn.Module, batch: Any) -> torch.Tensor:
        random.random(), torch.rand(3), np.random.rand()
        return case.loss(model, batch)

    before = states()
    CALLS["hvp"](case.model.eval(), wasteful, case.data)
    assert states() == before


@pytest.mark.parametrize("call", [*CALLS, "doctor", "plan"])
def test_reading_the_data_draws_from_a_sequence_of_its_own(call: str) -> None:
    case = mlp()
    loader = DataLoader(TensorDataset(torch.randn(6, 5), torch.randint(0, 3, (6,))), batch_size=3)
    before = states()
    if call == "doctor":
        assert he.doctor(case.model, case.loss, data=loader, seconds=1).ok
    elif call == "plan":
        he.plan(case.model, case.loss, data=loader)
    else:
        CALLS[call](case.model, case.loss, loader)
    assert states() == before


def test_shuffled_data_is_still_noticed() -> None:
    case = mlp()
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(40, 5), torch.randint(0, 3, (40,))), batch_size=10, shuffle=True)
    before = states()
    with pytest.raises(NonDeterministicError, match="shuffle=False"):
        CALLS["hvp"](case.model, case.loss, loader)
    assert states() == before


def test_what_another_thread_draws_is_not_blamed_on_the_loss() -> None:
    case, stop = mlp(), threading.Event()

    def draw() -> None:
        while not stop.is_set():
            random.random()
            torch.rand(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for mode in (True, False):
            CALLS["hvp"](case.model.train(mode), case.loss, case.data)
    finally:
        stop.set()
        thread.join()


def test_jobs_in_two_threads_do_not_disturb_each_other() -> None:
    found: dict[int, Any] = {}

    def work(number: int, case: Case) -> None:
        found[number] = CALLS["slq"](case.model, case.loss, case.data)["full"].nodes

    work(0, mlp())
    threads = [threading.Thread(target=work, args=(number, mlp_of(number))) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def mlp_of(number: int) -> Case:
    del number  # the same network every time, as an object of its own
    return mlp()


@pytest.mark.parametrize(
    "generator", [random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator()]
)
def test_extreme_numbers_come_next_when_asked_for(generator: Any) -> None:
    source = source_of(generator)
    assert source is not None
    before = source.read()

    def draw() -> float:
        if isinstance(generator, torch.Generator):
            return float(torch.rand((), generator=generator))
        return float(generator.rand() if isinstance(generator, np.random.RandomState) else generator.random())

    source.extreme(LOW)
    assert draw() < 1e-3
    source.extreme(HIGH)
    assert draw() > 1 - 1e-3
    source.write(before)
    assert source.read() == before


def test_draws_that_repeat_until_a_number_suits_them_come_to_an_end() -> None:
    generator = random.Random(0)
    for which in (LOW, HIGH):
        PythonSource(generator).extreme(which)
        assert isinstance(generator.normalvariate(), float)
        PythonSource(generator).extreme(which)
        generator.shuffle(list(range(10)))


def test_a_seed_is_that_of_torch_and_every_generator_gets_its_state_back(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.Generator()  # stands for a GPU's
    card.manual_seed(7)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", (card,))
    before, of_card = states(), card.get_state()
    with fixed_numbers(3):
        drawn = torch.rand(4)
    assert states() == before and torch.equal(card.get_state(), of_card)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


class Adapted(nn.Module):
    """A network with an adapter that begins with zeros, and dropout as a function, which no eval() turns off."""

    def __init__(self, share: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.down, self.up, self.share = nn.Linear(5, 3), nn.Linear(5, 2), nn.Linear(2, 3, bias=False), share
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base(x) + self.up(F.dropout(self.down(x), self.share))
        return found


@pytest.mark.parametrize("call", CALLS)
def test_what_only_the_gradient_shows_is_noticed(call: str) -> None:
    data = [(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2]))]
    model = Adapted(0.5).eval()
    before = states()
    with pytest.raises(NonDeterministicError, match="functional dropout"):
        CALLS[call](model, he.losses.classification, data)
    assert not he.doctor(model, he.losses.classification, data=data, seconds=1).ok
    assert states() == before
    CALLS[call](Adapted(0.0).eval(), he.losses.classification, data)  # draws, and it does not matter
