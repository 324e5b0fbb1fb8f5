"""The training loop against a plain one, its stops, and the search for a rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.optimizers import constant, cosine, linear, make_optimizer, rising
from hvp_engine.experiments.training import Curve, accuracy, fit, held_out, search, speed_up

STEPS = 12


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def batches(size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.randn(size, 5, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def curve_of(*values: float, rate: float = 0.1) -> Curve:
    return Curve(np.array(values), np.ones(len(values)), rate=rate)


def test_the_loop_takes_the_steps_of_a_plain_loop_of_torch() -> None:
    ours, plain = model(), model()
    optimizer = make_optimizer("sgd", ours, 0.1)
    curve = fit(ours, losses.classification, batches(), optimizer, cosine(STEPS), steps=STEPS, clip=0.05)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    rise = round(0.05 * STEPS)
    expected, norms = [], []
    for step, (inputs, labels) in enumerate(itertools.islice(batches(), STEPS)):
        share = (step - rise) / (STEPS - rise)
        factor = (step + 1) / (rise + 1) if step < rise else 0.5 * (1 + math.cos(math.pi * share))
        reference.param_groups[0]["lr"] = 0.1 * factor
        loss = nn.functional.cross_entropy(plain(inputs), labels)
        reference.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)))
        reference.step()
        expected.append(float(loss.detach()))
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-6)
    np.testing.assert_allclose(curve.gradient_norms, norms, rtol=1e-5)
    assert max(norms) > 0.05  # so the gradients were clipped
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_the_gradient_norm_is_the_whole_gradients_where_nothing_is_clipped() -> None:
    network = model()
    inputs, labels = next(batches())
    loss = nn.functional.cross_entropy(network(inputs), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    optimizer = make_optimizer("adam", network, 0.01)
    curve = fit(network, losses.classification, batches(), optimizer, constant(), steps=1)
    assert curve.gradient_norms[0] == pytest.approx(expected, rel=1e-6)


def test_the_mean_gradient_of_microbatches_makes_the_step_of_the_whole_batch() -> None:
    def halves() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in batches():
            yield inputs[:4], labels[:4]
            yield inputs[4:], labels[4:]

    ours, whole = model(), model()
    curves = [
        fit(
            network,
            losses.classification,
            data,
            make_optimizer("sgd", network, 0.1),
            linear(STEPS),
            steps=STEPS,
            microbatches=micro,
        )
        for network, data, micro in ((ours, halves(), 2), (whole, batches(), 1))
    ]
    np.testing.assert_allclose(curves[0].losses, curves[1].losses, rtol=1e-5)
    for mine, theirs in zip(ours.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("later", [float("nan"), float("inf"), 3.1])
def test_a_training_stops_at_a_loss_that_is_not_finite_or_three_times_the_first(later: float) -> None:
    values = iter([1.0, 2.9, later, 0.5])
    weight = nn.Linear(1, 1, bias=False)
    taken: list[int] = []

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        total: Tensor = network(batch).sum() * 0.0 + next(values)
        return total

    optimizer = make_optimizer("plain-sgd", weight, 0.1)
    data = itertools.repeat(torch.ones(1, 1))
    curve = fit(weight, loss, data, optimizer, constant(), steps=4, after=taken.append)
    assert curve.losses[:2].tolist() == [1.0, 2.9] or curve.losses[:2] == pytest.approx([1.0, 2.9])
    assert np.isinf(curve.losses[2:]).all()
    assert np.isnan(curve.gradient_norms[2:]).all()
    assert math.isinf(curve.final)
    assert taken == [1, 2]


def test_the_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert curve_of(*range(20)).final == pytest.approx(18.5)


def test_the_search_extends_its_grid_at_the_edge_at_most_twice_and_says_so() -> None:
    tried: list[float] = []

    def train(rate: float) -> Curve:
        tried.append(rate)
        return curve_of(1.0 / rate, rate=rate)  # the larger, the better, without end

    best, curves = search(train, (0.03, 0.1, 0.01))
    assert tried == [0.1, 0.03, 0.01, 0.333, 1.11]
    assert best.rate == 1.11
    assert best.at_edge
    assert list(curves) == sorted(tried, reverse=True)


def test_the_search_stays_inside_a_grid_that_holds_the_best_rate() -> None:
    best, curves = search(lambda rate: curve_of(abs(math.log(rate / 0.1)), rate=rate), (1.0, 0.1, 0.01))
    assert best.rate == 0.1
    assert not best.at_edge
    assert len(curves) == 3


def test_the_search_passes_over_rates_that_diverge() -> None:
    best, _ = search(lambda rate: curve_of(math.inf if rate > 0.5 else rate, rate=rate), (1.0, 0.1), extensions=0)
    assert best.rate == 0.1


def test_a_grid_of_one_rate_has_no_edge() -> None:
    best, curves = search(lambda rate: curve_of(1.0, rate=rate), (0.1,))
    assert not best.at_edge
    assert list(curves) == [0.1]


def test_the_speed_up_counts_steps_to_the_other_ones_final_loss() -> None:
    slow = curve_of(*np.linspace(2.0, 1.0, 40))
    fast = curve_of(*np.linspace(2.0, 0.0, 40))
    means = np.convolve(fast.losses, np.full(4, 0.25), mode="valid")
    assert speed_up(slow, fast) == pytest.approx(40 / (np.argmax(means <= slow.final) + 4))
    assert 1.8 < speed_up(slow, fast) < 2.2
    assert speed_up(fast, slow) == 0.0


def test_the_held_out_loss_weighs_every_sample_the_same_and_keeps_the_mode() -> None:
    network = model().train()
    inputs, labels = next(batches(10))
    whole = held_out(network, losses.classification, [(inputs, labels)])
    parts = held_out(network, losses.classification, [(inputs[:7], labels[:7]), (inputs[7:], labels[7:])])
    assert parts == pytest.approx(whole, rel=1e-6)
    assert network.training


def test_the_accuracy_is_the_share_of_largest_logits_that_are_right() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    assert accuracy(nn.Identity(), [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([2, 0]))]) == 0.75


def test_an_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="There is no optimizer 'lion'; choose one of sgd, plain-sgd, adam"):
        make_optimizer("lion", model(), 0.1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (cosine(100, 0.1, 0.25), (1 / 11, 1.0, 0.625, 0.25)),
        (linear(100), (1.0, 0.9, 0.45, 0.0)),
        (rising(200, 0.25), (1 / 3, 7 / 15, 1.0, 1.0)),
    ],
)
def test_schedules_have_the_rates_that_they_promise(schedule, expected: tuple[float, ...]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rates[0], rates[10], rates[55], rates[100]] == pytest.approx(expected)
