from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hvp_engine.experiments.drivers import when_adam_loses
from hvp_engine.experiments.registry import Setting


def test_tiny_run_finds_adam_the_better_the_nearer_to_diagonal(tmp_path: Path) -> None:
    result = when_adam_loses.run(Setting("tiny", 1, tmp_path))
    assert result.holds, [claim.line("D20") for claim in result.claims]
    assert len(result.table.rows) == 9 * len(when_adam_loses.TURNS)


def test_on_the_axes_adams_condition_number_is_that_of_the_start_alone() -> None:
    tau, ratio = next(when_adam_loses.turned(np.random.default_rng(3), 10, 1e3))
    random = np.random.default_rng(3)
    random.standard_normal((10, 10))
    x = np.abs(random.standard_normal(10))
    assert tau == 1.0
    assert ratio == pytest.approx(x.max() / x.min() / 1e3)


def test_turning_keeps_eigenvalues_and_lowers_diagonality() -> None:
    taus = [tau for tau, _ in when_adam_loses.turned(np.random.default_rng(0), 30, 1e3)]
    assert taus[0] == 1.0
    assert taus[-1] < 0.3
    assert all(later < earlier for earlier, later in pairwise(taus[:-1]))


def test_a_ratio_that_does_not_follow_diagonality_has_no_correlation() -> None:
    random = np.random.default_rng(0)
    sample = when_adam_loses.Sample(random.random((20, 50)), random.random((20, 50)))
    assert abs(when_adam_loses.correlation(sample)) < 0.4
