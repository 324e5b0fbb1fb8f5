"""Numbers and names as people read them."""

import math

import pytest
from rich.cells import cell_len
from strange_names import STRANGE_NAMES

from hvp_engine.system.formatting import (
    abbreviate,
    first_names,
    format_bytes,
    format_clock,
    format_flop,
    format_number,
    format_time,
    format_traffic,
    format_with_error,
    shorten,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.344, "12.34"),
        (0.0, "0"),
        (-5.6781e-9, "-5.678e-09"),
        (79427.0, "7.943e+04"),
        (math.nan, "–"),
        (9999.6, "1.000e+04"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (12.3444, 0.21, "12.34 ± 0.21"),
        (1.2344e-9, 2.1e-11, "(1.234 ± 0.021)e-09"),
        (0.5, 31.0, "0 ± 31"),
        (12.3444, 4.5e-7, "12.34 ± 0.01"),
        (-1.23444e-9, 0.0, "(-1.234 ± 0.001)e-09"),
        (3.0, math.nan, "3.000 ± –"),
        (0.0, 0.0, "0 ± 0"),
    ],
)
def test_estimates_share_the_form_of_their_error(value, stderr, text):
    assert format_with_error(value, stderr) == text


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (format_bytes, 0, "0 B"),
        (format_bytes, 1023, "1023 B"),
        (format_bytes, 1536, "1.50 KiB"),
        (format_bytes, 20 << 20, "20.0 MiB"),
        (format_bytes, 6.4 * 2**30, "6.40 GiB"),
        (format_traffic, 2.039e12, "2.04 TB"),
        (format_traffic, 999.6e9, "1.00 TB"),
        (format_flop, 13.9e18, "13.9 EFLOP"),
        (format_flop, 500.0, "500 FLOP"),
        (format_time, 0.0, "0 s"),
        (format_time, 0.0042, "4.20 ms"),
        (format_time, 0.42, "420 ms"),
        (format_time, 119.0, "119 s"),
        (format_time, 750.0, "12.5 min"),
        (format_time, 99_000.0, "27.5 h"),
        (format_clock, 7.4, "0:07"),
        (format_clock, 3723.0, "1:02:03"),
        (format_clock, math.inf, "unknown"),
    ],
)
def test_every_unit_has_its_one_form(write, value, text):
    assert write(value) == text


def test_long_lists_of_names_are_cut():
    assert first_names(["a", "b"]) == "a, b"
    assert first_names(list("abcdef")) == "a, b, c, d, e, ..."


def test_names_are_shown_on_one_line_without_what_cannot_be_seen():
    for shown in abbreviate(STRANGE_NAMES):
        assert shown.isprintable()
        assert shown.strip()
        assert cell_len(shown) <= 200
    assert abbreviate(["layer.0.weight", "$x_1$", "名前"]) == ["layer.0.weight", "$x_1$", "名前"]


@pytest.mark.parametrize("cells", [12, 24, 200])
def test_names_that_differ_stay_different_however_short(cells):
    names = [*STRANGE_NAMES, *(f"model.layers.{i}.{'deep.' * 50}weight" for i in range(120)), "x" * 500, "x" * 501]
    shown = abbreviate(names, cells)
    assert len(set(shown)) == len(names)
    assert max(map(cell_len, shown)) <= cells


def test_long_names_lose_their_middle():
    assert abbreviate(["abcdefghij"], 5) == ["ab…ij"]
    assert abbreviate(["名前名前名前"], 6) == ["名…前"]  # two columns each
    assert abbreviate(["abcdefghij", "abcdefghij"], 5) == ["ab…ij", "ab…ij"]  # the same name twice
    assert abbreviate(["layer.0.abcde.weight", "layer.1.abcde.weight"], 12) == ["laye…ight #1", "laye…ight #2"]
    assert shorten("short", 5) == "short"
