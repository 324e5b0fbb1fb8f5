"""Statistics of blockwise spectra against their definitions, on spectra that are known exactly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from zoo_entries import entry, setting

from hvp_engine.experiments.blockwise import COLUMNS, Blockwise, mean_and_deviation, measure, ratios, settings_of
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


def spectra(*largest: float) -> Spectra:
    values = np.linspace(0.0, 1.0, 20)
    return Spectra([Spectrum.exact(f"block {n}", 20, top * values) for n, top in enumerate(largest)])


def test_every_statistic_has_its_definition_and_a_value_per_seed() -> None:
    found = Blockwise(entry(), (spectra(1.0, 10.0, 100.0), spectra(1.0, 1.0, 1.0)))
    assert found.spread == pytest.approx((math.sqrt(2.0 / 3.0), 0.0), abs=1e-6)
    assert found.gini == pytest.approx((198.0 / 333.0, 0.0), abs=1e-6)
    assert found.js0[0] > 0.5 and found.js0[1] == pytest.approx(0.0, abs=1e-9)
    assert found.matrix.shape == (3, 3) and found.matrix[0, 2] == pytest.approx(
        0.5 * found.spectra[0].js_distance()[0, 2], abs=1e-9
    )
    assert len(found.row) == len(COLUMNS) and found.row[:2] == ("toy", 3)
    assert found.row[6:8] == pytest.approx((1.0, 100.0))


def test_a_block_without_curvature_counts_in_no_statistic() -> None:
    with_flat = Spectra([*spectra(1.0, 10.0).values(), Spectrum.exact("flat", 20, np.zeros(20))])
    found, without = Blockwise(entry(), (with_flat,)), Blockwise(entry(), (spectra(1.0, 10.0),))
    assert found.spread == without.spread and found.gini == without.gini and found.js0 == without.js0


def test_ratios_are_of_the_smallest_above_and_the_largest_below_seed_by_seed() -> None:
    values = {"a": (4.0, 6.0), "b": (8.0, 3.0), "c": (2.0, 1.0), "d": (1.0, 3.0)}
    assert ratios(values, ("a", "b"), ("c", "d")) == [2.0, 1.0]


def test_a_single_seed_has_no_deviation() -> None:
    assert mean_and_deviation([2.0]) == (2.0, pytest.approx(math.nan, nan_ok=True))
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2.0)))


def test_an_entry_is_measured_with_its_own_blocks_or_with_others(tmp_path: Path) -> None:
    found = measure(setting(tmp_path), entry())
    assert list(found.spectra[0]) == ["0", "2"] and len(found.spectra) == 2
    assert settings_of([found])["toy"]["steps"] == 12  # type: ignore[index]
    other = measure(setting(tmp_path), entry(), steps=4, probes=2, blocks={"all": ["*"]})
    assert list(other.spectra[0]) == ["all"] and other.spectra[1]["all"].probes == 2
