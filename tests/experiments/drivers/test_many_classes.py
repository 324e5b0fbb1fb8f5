from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from problems import Case, dense_hessian

from hvp_engine import losses
from hvp_engine.experiments.drivers import many_classes
from hvp_engine.experiments.neuron_blocks import between_over_within, closed_form
from hvp_engine.experiments.registry import Setting


def test_tiny_run_finds_neurons_apart_with_many_classes(tmp_path: Path) -> None:
    result = many_classes.run(Setting("tiny", 1, tmp_path))
    assert result.holds, [claim.line("F2") for claim in result.claims]
    assert [row[0] for row in result.table.rows] == [2, 10, 30, 100, 300]


@pytest.mark.parametrize("seed", range(3))
def test_weights_and_inputs_of_a_seed_are_drawn_apart(seed: int) -> None:
    model, (inputs, _) = many_classes.sample(many_classes._SIZES["small"], 10, seed)
    weights = model.fc1.weight.detach().flatten()
    assert abs(np.corrcoef(weights, inputs.flatten()[: len(weights)])[0, 1]) < 0.1


def test_the_closed_form_is_the_hessian() -> None:
    model, batch = many_classes.sample(many_classes._Sizes(5, 40, ()), 7, seed=2)
    found = closed_form(model, batch)
    expected = dense_hessian(Case(model, losses.classification, [batch]), ["fc1.weight"]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_the_ratio_is_zero_for_separate_neurons_and_one_for_equal_blocks() -> None:
    width = 3
    assert between_over_within(np.kron(np.eye(8), np.ones((width, width))), 8) == 0.0
    assert between_over_within(np.ones((8 * width, 8 * width)), 8) == pytest.approx(1.0)


def test_the_slope_is_that_of_a_power_law_from_thirty_classes_on() -> None:
    classes = (2, 10, 30, 100, 1000)
    ratios = np.array(classes, dtype=float) ** -0.9
    ratios[:2] = 7.0
    assert many_classes.slope(classes, ratios) == pytest.approx(-0.9)


def test_the_papers_size_is_planned() -> None:
    (part,) = many_classes.plan(Setting("paper", 3, Path()))
    assert part.flop > 18 * 4000 * 5000 * 500 * 8 * 2  # matrices, products, samples, a pass through the first layer
    assert part.bytes > 8 * 4000**2
    assert part.hours["A100"] > part.hours["H100"] > 0.0
