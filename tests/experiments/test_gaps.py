"""Gaps between SGD and Adam: their numbers, what is said of the edges of grids, and the panel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from zoo_entries import entry, setting

from hvp_engine.experiments import figures
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.training import Curve


def curve(final: float, at_edge: bool = False) -> Curve:
    return Curve(np.linspace(2.0, final, 10), np.ones(10), rate=0.1, at_edge=at_edge)


def test_a_gap_is_the_final_loss_of_sgd_minus_adams_seed_by_seed() -> None:
    found = Gap("toy", (curve(0.5), curve(0.7)), (curve(0.4), curve(0.4)))
    assert found.values == pytest.approx((0.1, 0.3)) and found.mean == pytest.approx(0.2)
    assert found.losses == pytest.approx((0.6, 0.4)) and found.relative == pytest.approx(0.5)
    assert found.summary == pytest.approx((0.2, math.sqrt(0.02)))


def test_a_best_rate_at_the_end_of_its_grid_is_said() -> None:
    assert Gap("toy", (curve(0.5),), (curve(0.4),)).edges == ()
    assert Gap("toy", (curve(0.5, True),), (curve(0.4),)).edges == (
        "The best learning rate of SGD for toy, 0.1, is the end of its grid.",
    )


def test_a_seed_that_does_not_train_at_the_chosen_rate_is_said() -> None:
    diverged = Curve(np.array([2.0, 7.0, np.inf]), np.ones(3), rate=0.1)
    found = Gap("vit", (curve(0.2), curve(0.3), curve(1.9)), (curve(0.1), diverged))
    assert found.edges == (
        "SGD on vit with seed 2 ends at a loss of 1.9, against 0.2 with seed 0, which its rate 0.1 was chosen by.",
        "Adam on vit with seed 1 ends at a loss of inf, against 0.1 with seed 0, which its rate 0.1 was chosen by.",
    )


def test_a_run_that_diverged_is_drawn_as_far_as_it_went() -> None:
    diverged = Curve(np.array([2.0, 2.5, 4.0, np.inf, np.inf]), np.ones(5), rate=1.0)
    found = Gap("toy", (diverged, diverged), (curve(0.4), curve(0.4)))
    assert found.mean == math.inf
    with figures.style():
        figure, axes = figures.page(1, 1, 2.0, 2.0)
        found.draw(axes[0, 0])
        assert figures.image(figure, "png")
    assert [line.get_label() for line in axes[0, 0].lines] == ["SGD, rate 1", "Adam, rate 0.1"]


def test_both_optimizers_are_trained_with_every_seed(tmp_path: Path) -> None:
    found = gap(setting(tmp_path), entry())
    assert found.name == "toy" and len(found.sgd) == len(found.adam) == 2
    assert found.sgd[0].final != found.sgd[1].final
