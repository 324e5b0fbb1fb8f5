"""Quantiles and variances against SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hvp_engine.results.jackknife import leave_one_out_variance, ratio_variance, student, variance_range


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 15, 31, 1000])
def test_quantiles_of_student_are_scipys(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_no_degree_of_freedom_has_no_quantile() -> None:
    assert math.isnan(student(0))


@pytest.mark.parametrize("freedom", [5, 7, 15, 63])
def test_the_range_of_a_variance_is_that_of_chi_square(freedom: int) -> None:
    exact = freedom / stats.chi2.ppf([0.975, 0.025], freedom)
    assert variance_range(freedom) == pytest.approx(tuple(exact), rel=0.06)


def test_the_variance_of_a_mean_is_the_usual_one() -> None:
    values = np.random.default_rng(0).standard_normal(9)
    left_out = (values.sum() - values) / 8
    usual = values.var(ddof=1) / 9
    assert leave_one_out_variance(left_out) == pytest.approx(usual)
    assert float(ratio_variance(values - values.mean(), 9.0)) == pytest.approx(usual)


def test_a_single_group_has_no_variance() -> None:
    assert math.isnan(leave_one_out_variance(np.ones(1)))
    assert np.isnan(ratio_variance(np.zeros((2, 1)), 1.0)).all()
