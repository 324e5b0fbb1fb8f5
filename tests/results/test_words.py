"""Numbers with their bars in words."""

import math

import pytest

from hvp_engine.results.estimate import Estimate
from hvp_engine.results.words import number_text


@pytest.mark.parametrize(
    ("value", "low", "high", "reading", "line"),
    [
        (12.3456, 12.1356, 12.5556, "vr", "12.35 ± 0.21"),
        (12.3456, 12.3456, 12.3460, "ritz", "12.35 ± 0.01"),
        (-1.23456e-9, -1.25e-9, -1.23e-9, "vr", "(-1.235 ± 0.016)e-09"),
        (0.3, -0.1, 0.7, "vr", "? ± 0.70"),
        (0.3, 0.0, 0.6, "vr", "? ± 0.60"),
        (0.0, 0.0, 0.0, "vr", "0"),
        (2.0, 2.0, 2.0, "vr", "2.000 ± 0.001"),
        (2.0, 2.0, 2.0, "exact", "2.000 exact"),
        (2.0, math.nan, math.nan, "exact", "2.000 exact"),
        (9.9999, 9.9998, 10.0, "exact", "10.00 exact"),
        (2.0, 1.9, 2.1, "exact", "2.00 ± 0.10"),  # as exact as its products, which have noise
        (1234.5, math.nan, math.nan, "gauss", "1234 ± ?"),
        (1234.5, -math.inf, math.inf, "gauss", "1234 ± ?"),
        (math.nan, math.nan, math.nan, "averaged", "–"),
    ],
)
def test_numbers_show_no_digit_that_is_not_known(value, low, high, reading, line):
    text = number_text(Estimate(value, math.nan, low, high, reading))
    assert text.line == line
    assert text.line == f"{text.value} {text.bar}".strip() or "(" in text.line


def test_values_and_bars_below_each_other_are_whole_numbers():
    text = number_text(Estimate(1.23456e-9, math.nan, 1.2e-9, 1.27e-9, "vr"))
    assert (text.value, text.bar) == ("1.235e-09", "± 3.6e-11")


def test_bounds_stay_bounds_without_a_bar():
    assert number_text(Estimate(3.14159, 0.0), bound="≥") == ("3.142", "or more", "≥ 3.142")
    assert number_text(Estimate(3.14159, 0.0), bound="≤") == ("3.142", "or less", "≤ 3.142")
    assert number_text(Estimate(3.14159, 0.0, 3.14, 3.15, "ritz"), bound="≥").line == "3.142 ± 0.009"
