"""Statistics of unlike blocks, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import heterogeneity


@pytest.mark.parametrize("seed", range(3))
def test_gini_is_half_the_mean_absolute_difference_over_the_mean(seed: int) -> None:
    x = np.random.default_rng(seed).lognormal(size=23)
    by_definition = np.abs(x[:, None] - x).mean() / (2.0 * x.mean())
    assert heterogeneity.gini(x) == pytest.approx(by_definition, rel=1e-12)


def test_gini_is_zero_for_equals_and_nearly_one_where_one_has_everything() -> None:
    assert heterogeneity.gini([3.0, 3.0, 3.0]) == 0.0
    assert heterogeneity.gini([0.0, 0.0, 0.0, 5.0]) == pytest.approx(0.75)


@pytest.mark.parametrize("x", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_numbers_without_a_gini_coefficient_are_refused(x: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="finite numbers of at least 0"):
        heterogeneity.gini(x)


def test_spread_counts_decades() -> None:
    assert heterogeneity.spread([1.0, 100.0]) == pytest.approx(1.0)
    with pytest.raises(ConfigurationError, match="leave out blocks without curvature"):
        heterogeneity.spread([1.0, 0.0])


def test_js0_is_the_mean_over_known_distinct_pairs() -> None:
    matrix = np.array([[0.0, 0.2, np.nan], [0.2, 0.0, 0.6], [np.nan, 0.6, 0.0]])
    assert heterogeneity.js0(matrix) == pytest.approx(0.4)
    with pytest.raises(ConfigurationError, match="two blocks"):
        heterogeneity.js0([[0.0]])


def test_energy_share_is_that_of_the_diagonal_blocks() -> None:
    matrix = np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 0.0], [3.0, 0.0, 2.0]])
    assert heterogeneity.energy_share(matrix, [[0, 1], [2]]) == pytest.approx((1 + 4 + 4 + 1 + 4) / 32)
    assert heterogeneity.energy_share(matrix, [[0, 1, 2]]) == 1.0
    with pytest.raises(ConfigurationError, match="zeros"):
        heterogeneity.energy_share(np.zeros((2, 2)), [[0], [1]])


def test_a_power_law_correlates_fully_on_logarithms_and_its_interval_says_so() -> None:
    x = np.random.default_rng(0).lognormal(size=20)
    assert heterogeneity.pearson_of_logs(x, 7.0 * x**-1.5) == pytest.approx(-1.0)
    assert heterogeneity.spearman(x, x**3) == pytest.approx(1.0) == heterogeneity.kendall(x, x**3)
    assert heterogeneity.interval(heterogeneity.pearson_of_logs, x, x**2) == pytest.approx((1.0, 1.0))


def test_an_interval_has_its_statistic_inside_and_is_the_same_for_the_same_seed() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal(30)
    y = x + generator.standard_normal(30)
    low, high = heterogeneity.interval(heterogeneity.spearman, x, y)
    assert 0.0 < low < heterogeneity.spearman(x, y) < high < 1.0
    assert (low, high) == heterogeneity.interval(heterogeneity.spearman, x, y)


def test_gradient_norms_are_those_of_the_mean_over_all_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    batches = [(torch.randn(n, 4), torch.randint(0, 2, (n,))) for n in (5, 3)]
    found = heterogeneity.gradient_norms(model, losses.classification, batches)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    nn.functional.cross_entropy(model(inputs), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert found[name] == pytest.approx(float(parameter.grad.norm()), rel=1e-5)
