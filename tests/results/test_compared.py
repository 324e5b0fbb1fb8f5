"""Two results side by side: differences with bars that hold, distances, and what is not compared."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from known_spectra import spectrum_of
from random_spectra import random_spectra

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.compared import Comparison, difference
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.spectra import Spectra

RNG = np.random.default_rng(3)
BEFORE = np.concatenate((RNG.normal(size=396), [8.0, 9.0, 11.0, 20.0]))
AFTER = np.concatenate((3.0 * BEFORE[:396] + 0.4, [12.0, 16.0, 21.0, 35.0]))


def run(values: np.ndarray, steps: int = 40, probes: int = 4, seed: int = 0) -> Spectra:
    return Spectra([spectrum_of("w", values, steps, probes, seed), spectrum_of("v", BEFORE, steps, probes, seed)])


def test_differences_and_distances_hold_the_true_ones_within_their_bars() -> None:
    found = Comparison(run(BEFORE), run(AFTER, steps=50, probes=3, seed=1))["w"]
    truths = {
        "trace": AFTER.sum() - BEFORE.sum(),
        "frobenius_norm": np.linalg.norm(AFTER) - np.linalg.norm(BEFORE),
        "largest": 15.0,
        "smallest": AFTER.min() - BEFORE.min(),
        "wasserstein": np.abs(np.sort(AFTER) - np.sort(BEFORE)).mean(),
    }
    for key, truth in truths.items():
        number = found.numbers[key]
        assert number.low <= truth <= number.high and math.isfinite(number.high - number.low), key
    assert found.largest.value == pytest.approx(15.0, rel=1e-3)
    assert 0.0 < found.js.low < found.js.value <= 1.0


def test_a_run_beside_itself_shows_no_difference() -> None:
    spectra = run(BEFORE)
    comparison = Comparison(spectra, spectra)
    for number in comparison["w"].numbers.values():
        assert number.low <= 0.0 <= number.high and number.value == pytest.approx(0.0, abs=0.05)
    assert "w  " in comparison.summary() and "differ" not in comparison.summary().replace("no difference", "")


def test_errors_of_chance_add_in_squares_and_bounds_as_they_are() -> None:
    one, other = Estimate(2.0, 1.5, -1.0, 5.0, "vr"), Estimate(10.0, 2.0, 6.0, 14.0, "vr")
    assert difference(one, other) == Estimate(8.0, 2.5, 3.0, 13.0, "vr")
    bound = Estimate(10.0, math.nan, 10.0, 11.0, "residual")
    found = difference(one, bound)
    assert (found.value, found.low, found.high) == (8.0, 5.0, 12.0) and math.isnan(found.stderr)
    assert found.reading == "vr or residual"
    unknown = difference(one, Estimate(math.nan, math.nan))
    assert math.isnan(unknown.value) and math.isnan(unknown.low)


def test_common_blocks_are_compared_and_the_others_named() -> None:
    first, second = random_spectra(3), random_spectra(2)
    comparison = Comparison(first, second, ("big", "small"))
    assert list(comparison) == ["layer.0/weight", "layer.1/weight"]
    assert comparison.only == (["layer.2/weight"], [])
    text = comparison.summary()
    assert text.startswith("small minus big") and "Only in big, and not compared: layer.2/weight (1)." in text
    with pytest.raises(ConfigurationError, match="have no block in common"):
        Comparison(first, random_spectra(2, prefix="other"))
    with pytest.raises(KeyError, match="is none of the blocks"):
        comparison["layer.2/weight"]


def test_blocks_of_another_size_show_both() -> None:
    small = Spectra([spectrum_of("w", BEFORE[:200], 20)])
    comparison = Comparison(run(BEFORE), small)
    assert comparison["w"].numel == (400, 200) and "400 / 200" in comparison.summary()


def test_a_block_without_curvature_has_no_divergence() -> None:
    flat = Spectra([spectrum_of("w", np.zeros(400), 1), spectrum_of("v", BEFORE, 20)])
    comparison = Comparison(run(BEFORE), flat)
    assert math.isnan(comparison["w"].js.value) and not math.isnan(comparison["v"].js.value)
    assert comparison["w"].trace.low <= -BEFORE.sum() <= comparison["w"].trace.high


def test_plain_data_has_everything_and_is_json() -> None:
    comparison = Comparison(run(BEFORE), run(AFTER), ("a", "b"), ["seed: 0 there, 1 here"])
    record = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert (record["first"], record["second"], record["differences"]) == ("a", "b", ["seed: 0 there, 1 here"])
    assert record["only_in_first"] == record["only_in_second"] == []
    assert record["blocks"][0]["largest"]["value"] == comparison["w"].largest.value
    assert comparison.rows()[0]["wasserstein_high"] == comparison["w"].wasserstein.high
    assert "seed: 0 there, 1 here" in comparison.summary() and "W1" in comparison._repr_html_()


def test_a_strangers_words_steer_no_terminal() -> None:
    comparison = Comparison(run(BEFORE), run(BEFORE), ("a\x1b[31m", "b"), ["x\x1b[2J"] * 9)
    text = comparison.summary()
    assert "\x1b" not in text and "and 3 more" in text
