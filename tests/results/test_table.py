"""The table of spectra."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from summaries import ADAPTED, NONE, bar, block_summary, exact_summary, summary_of

from hvp_engine.results.account import Account
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.table import summary_table, summary_text

MISSED = Account((100, 100), 10, 0, 1000, 1000, "ceiling of steps", {"w1": (0.034, 0.02)})


def printed(summary, width):
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(summary_table(summary, width))
    return console.file.getvalue().splitlines()


def row(name, text):
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return " ".join(line.split())


def test_every_number_has_its_bar_and_every_block_what_it_cost():
    text = summary_text(summary_of(block_summary("a"), block_summary("b")))
    assert row("a", text) == (
        "a 66,945,024 12.35 ± 0.21 5.432 ± 0.013 -0.5000 ± 0.0001 3.142 ± 0.001 9–11 0.432 ± 0.012 45 x 1 + 4 "
        "49 of 1,000 tolerance"
    )
    assert "mean over pairs" in text
    assert "0.512 ± 0.008" in text
    assert "95 % bars" in text
    assert "trace: deflated; Frobenius norm: vr; smallest, largest, outliers: ritz; JS0: averaged." in text
    assert "Products: 98 of the 2,000 at the ceilings of steps and probes; 95.1 % saved." in text


def test_a_number_that_its_bar_exceeds_is_not_shown():
    text = summary_text(summary_of(block_summary("a", trace=bar(0.1234, 0.5)), js0=bar(0.3333, 0.4)))
    assert "? ± 0.62" in row("a", text)
    assert "0.123" not in text
    assert "not known" in text
    both = summary_text(summary_of(block_summary("a"), block_summary("b"), js0=bar(0.3333, 0.4)))
    assert "? ± 0.73" in both
    assert "0.33" not in both


def test_numbers_without_bars_say_so():
    unknown = block_summary(
        "a", trace=Estimate(12.3456, 0.1), smallest=Estimate(-0.5, 0.0), largest=Estimate(3.14159, 0.0), js0=NONE
    )
    text = summary_text(summary_of(unknown, js0=Estimate(0.512, float("nan"))))
    assert "12 ± ?" in row("a", text)
    assert "≤ -0.5000 ≥ 3.142" in row("a", text)
    assert "without a bar" in text
    assert "without a bar" not in summary_text(summary_of(block_summary("a")))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(9.0, 9.0, "9"), (8.6, 9.2, "8–10"), (0.0, 4.0, "0–4"), (12.0, 60_000_000.0, "≥ 12"), (2.0, float("inf"), "?")],
)
def test_outliers_are_counted_as_far_as_they_can_be(low, high, text):
    block = block_summary("a", outliers=Estimate(9.0, 0.1, low, high, "vr"), js0=NONE)
    assert f" {text} – " in row("a", summary_text(summary_of(block)))


def test_exact_blocks_say_so_and_have_no_bars():
    text = summary_text(summary_of(exact_summary(), block_summary("a")))
    assert row("tiny", text).count("4.000 exact") == 4
    assert row("tiny", text).endswith("exact 64 of 1,000 exact")
    narrow = printed(summary_of(exact_summary(), block_summary("a")), 80)
    assert " ".join(narrow).count("exact") == 6


def test_blocks_of_zero_curvature_are_named_and_have_no_distance():
    text = summary_text(summary_of(block_summary("a"), block_summary("key.bias", zero=True)))
    assert "Zero curvature, left out of JS0: key.bias." in text
    assert " 0 0 0 0 0 – " in row("key.bias", text)
    assert "Zero curvature" not in summary_text(summary_of(block_summary("a")))


def test_what_was_not_reached_is_marked_and_told():
    text = summary_text(summary_of(block_summary("a", account=MISSED), block_summary("b")))
    assert row("a", text).endswith("100 x 10 1,000 of 1,000 ceiling of steps!")
    assert "! Not reached (1 of 2 blocks): a w1 0.034 (0.020 asked): ceiling of steps." in text
    many = [block_summary(f"b{i}", account=MISSED) for i in range(30)]
    below = " ".join(summary_text(summary_of(*many)).split())
    assert "(30 of 30 blocks): b0 w1 0.034 (0.020 asked): ceiling of steps; b1 w1" in below
    assert "; and 18 more. Products: 30,000 of the 30,000 at the ceilings of steps and probes." in below
    more = [block_summary("a", account=replace(MISSED, products=1_012))]
    assert "Products: 1,012, more than the 1,000 at the ceilings" in summary_text(summary_of(*more))


def test_a_job_that_did_what_was_asked_has_no_ceilings():
    asked = Account((97, 100), 10, 0, 994, None, "asked", {})
    text = summary_text(summary_of(block_summary("a", account=asked)))
    assert row("a", text).endswith("97–100 x 10 994 asked")
    assert "saved" not in text


def test_a_single_block_has_no_mean_over_pairs():
    text = summary_text(summary_of(block_summary("a", js0=NONE), js0=NONE))
    assert "mean over pairs" not in text
    assert "nan" not in text


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_narrow_terminals_have_whole_numbers_above_their_bars(width, scale):
    names = ["wte.weight", *(f"transformer.h.{i}.attn.c_attn.weight" for i in range(3))]
    lines = printed(summary_of(*(block_summary(name, scale=scale, account=ADAPTED) for name in names)), width)
    assert max(map(len, lines)) <= width
    place = next(i for i, line in enumerate(lines) if line.startswith(names[1]))
    upper, lower = lines[place : place + 2] if "66,945" in lines[place] else lines[place + 1 : place + 3]
    value, error = {1.0: ("5.432", "± 0.013"), 1e-9: ("5.432e-09", "± 1.3e-11"), 1e9: ("5.432e+09", "± 1.3e+07")}[scale]
    end = upper.index(value) + len(value)
    assert upper[:end].endswith(f" {value}")
    assert lower[:end].endswith(f" {error}")
    assert "49/1,000" in upper.split()
    assert lower.split()[0] == "45x1+4"
    assert lower.endswith(" tolerance")
