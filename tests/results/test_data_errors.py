"""Bars for the choice of data of several blocks: saved, loaded, tabulated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from group_forms import forms_of, grouped
from random_spectra import random_spectra

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.data_errors import DataErrors, load_beside
from hvp_engine.results.spectra import Spectra
from hvp_engine.system import json_files


def some_errors(names: tuple[str, ...] = ("a", "b/weight"), tokens: float = 1.0) -> DataErrors:
    rng = np.random.default_rng(0)
    matrices, counts = grouped(rng.standard_normal((40, 6)), np.ones(40), 8)
    forms = {name: forms_of((i + 1) * matrices, tokens * counts, rng) for i, name in enumerate(names)}
    return DataErrors(forms, counts.astype(np.int64), {"seed": 3})


def test_round_trip_gives_the_same_bars(tmp_path: Path) -> None:
    errors = some_errors()
    errors.save(tmp_path / "run")
    loaded = DataErrors.load(tmp_path / "run")
    assert list(loaded) == ["a", "b/weight"] and loaded.manifest == {"seed": 3}
    assert all(loaded[name] == errors[name] for name in errors)
    assert (loaded.samples == errors.samples).all() and (loaded.weights == errors.weights).all()


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": []},
        {"blocks": [{"name": "a", "numel": 6}, {"name": "a", "numel": 6}]},
        {"blocks": [{"name": "a", "numel": 0}, {"name": "b/weight", "numel": 6}]},
        {"groups": 0},
        {"groups": 7},
        {"probes": "8"},
        {"run": None},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    some_errors().save(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    del document[json_files.CHECKSUM]
    json_files.write_json(tmp_path / "manifest.json", {**document, **change})
    with pytest.raises(RunFolderError):
        DataErrors.load(tmp_path)


def test_a_folder_without_finished_bars_has_none(tmp_path: Path) -> None:
    (tmp_path / "data_error" / "hvp_engine-checkpoint").mkdir(parents=True)
    assert load_beside(tmp_path) is None


def test_spectra_keep_bars_around_their_own_values(tmp_path: Path) -> None:
    spectra = random_spectra(2)
    errors = some_errors(tuple(spectra))
    both = Spectra(spectra.values(), spectra.manifest, errors)
    both.save(tmp_path)
    for found in (both, Spectra.load(tmp_path)):
        assert found.data_error is not None
        for name, spectrum in spectra.items():
            block, raw = found.data_error[name], errors[name]
            assert block.trace.value == spectrum.trace().value
            assert block.trace.high - block.trace.value == pytest.approx(raw.trace.high - raw.trace.value)
            on_data = block.frobenius_norm.value + block.excess["frobenius_norm"]
            assert on_data == pytest.approx(spectrum.frobenius_norm().value)
            assert block.largest == raw.largest
    assert "Choice of data" in both.summary() and "Choice of data" not in spectra.summary()


def test_the_table_has_values_bars_and_samples() -> None:
    errors = some_errors(tokens=32.0)
    text = errors.summary(0.1)
    assert "8 groups of the data (40 samples, weight 1,280)" in text and "A sample weighs 32.00 on average" in text
    line = next(line for line in text.splitlines() if line.startswith("b/weight"))
    assert f"{math.ceil(errors.samples_for(0.1)['b/weight']['trace']):,}" in line
    assert "trace to 10 %" in text and "a factor of 0.44 to 4.2" in text
    assert "weighs" not in some_errors().summary()


def test_samples_fall_with_the_square_of_the_bar_where_there_is_no_excess() -> None:
    errors = some_errors()
    one, two = (errors.samples_for(bar)["a"]["trace"] for bar in (0.05, 0.1))
    assert one == pytest.approx(4 * two)


def test_unknown_blocks_and_no_blocks_are_said_in_words() -> None:
    with pytest.raises(KeyError, match="'c' is none of the blocks a, b/weight"):
        some_errors()["c"]
    with pytest.raises(ConfigurationError, match="There are no blocks"):
        DataErrors({}, np.ones(2, dtype=np.int64))


def test_bars_are_rows_and_a_table_in_notebooks_too() -> None:
    errors = some_errors()
    rows = errors.rows()
    assert [row["block"] for row in rows] == ["a", "b/weight"] and rows[0]["largest_low"] == errors["a"].largest.low
    assert errors.record()["samples"] == 40 and errors.record()["groups"] == 8
    html = errors._repr_html_()
    assert "Choice of data: 95 % bars" in html and ">b/weight</td>" in html
