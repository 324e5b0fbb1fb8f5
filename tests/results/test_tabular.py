"""Every kind of result as rows, arrays, a data frame and a notebook's table."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
from random_spectra import random_spectra
from test_eigenpairs import pairs
from test_off_diagonal_results import NUMEL, sums
from test_sampled_results import some

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.results.off_diagonal import OffDiagonal
from hvp_engine.results.record import plain
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.tabular import Tabular, columns, flat

KINDS = {
    "spectra": random_spectra,
    "traces": lambda: some("traces"),
    "norms": lambda: some("norms"),
    "diagonals": lambda: some("diagonals"),
    "eigensystem": lambda: Eigensystem([pairs(), pairs("c", vectors=False)]),
    "off diagonal": lambda: OffDiagonal(NUMEL, sums()),
}


@pytest.fixture(params=KINDS)
def result(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


class Frame:
    """As much of a data frame as is asked of one."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self.index = columns, None

    def set_index(self, name: str) -> Frame:
        self.index = self.columns.pop(name)
        return self


def test_every_result_has_rows_of_the_same_columns_that_begin_with_the_block(result: Tabular) -> None:
    rows = result.rows()
    assert rows and all(list(row) == list(rows[0]) for row in rows)
    assert list(rows[0])[:2] == ["block", "numel"]
    assert list(dict.fromkeys(row["block"] for row in rows)) == list(result)  # type: ignore[call-overload]
    assert all(isinstance(value, (str, int, float, type(None))) for row in rows for value in row.values())


def test_rows_have_the_estimates_unrounded() -> None:
    spectra = random_spectra()
    for name, row in zip(spectra, spectra.rows(), strict=True):
        trace = plain(spectra[name].trace()) or {}
        assert row["trace"] == trace.pop("value") is not None
        assert {f"trace_{key}": value for key, value in trace.items()}.items() <= row.items()
        assert (row["steps_fewest"], row["steps_most"], row["probes"]) == (4, 5, 3)
    pairs_of_b = Eigensystem([pairs()]).rows()
    assert [row["value"] for row in pairs_of_b] == [-1.0, 2.0, 4.0]
    assert [row["converged"] for row in pairs_of_b] == [True, False, True]
    (first, _) = OffDiagonal(NUMEL, sums()).rows()
    assert first["ratio"] == OffDiagonal(NUMEL, sums())["first"].ratio.value
    traces = some("traces").rows()
    assert traces[1] == {
        "block": "b", "numel": 2, "trace": -1.0, "trace_stderr": None, "trace_low": None, "trace_high": None,
        "trace_reading": "gauss",
    }  # fmt: skip


def test_nodes_are_told_with_the_numbers_of_their_probes() -> None:
    spectra = random_spectra(2)
    nodes = spectra.further_rows()["nodes"]
    assert len(nodes) == 2 * (5 + 4 + 5)
    last = [row for row in nodes if row["block"] == "layer.1/weight"][-1]
    assert (last["probe"], last["node"]) == (2, spectra["layer.1/weight"].nodes[2, 4])
    later = Spectra(spectra.values(), {"config": {"first_probe": 7}}).further_rows()["nodes"]
    assert {row["probe"] for row in later} == {7, 8, 9}
    strange = Spectra(spectra.values(), {"config": {"first_probe": "x"}}).further_rows()["nodes"]
    assert strange == nodes


def test_arrays_are_those_of_the_blocks() -> None:
    spectra = random_spectra(2)
    arrays = spectra.arrays()
    assert len(arrays) == 2 * 5 and arrays["layer.0/weight/weights"] is spectra["layer.0/weight"].weights
    system = Eigensystem([pairs(), pairs("c", vectors=False)]).arrays()
    assert set(system) == {"b/values", "b/residuals", "b/vectors", "c/values", "c/residuals"}
    assert set(some("diagonals").arrays()) == {f"{name}/{key}" for name in "ab" for key in ("value", "stderr", "half")}
    assert np.array_equal(OffDiagonal(NUMEL, sums()).arrays()["/sums"], sums())


def test_columns_are_text_truth_whole_numbers_or_floats() -> None:
    rows = [
        flat({"name": "a", "n": 1, "x": 0.5, "y": None, "ok": True, "list": [1]}),
        flat({"name": "b", "n": 2, "x": None, "y": None, "ok": False}),
    ]
    found = columns(rows)
    assert {name: column.dtype.kind for name, column in found.items()} == {
        "block": "U",
        "n": "i",
        "x": "f",
        "y": "f",
        "ok": "b",
    }
    assert math.isnan(found["x"][1]) and found["n"].tolist() == [1, 2]
    assert columns([]) == {}


def test_a_data_frame_has_the_columns_and_the_blocks_as_its_index(
    result: Tabular, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    frame: Any = result.to_pandas()
    assert frame.index == [row["block"] for row in result.rows()]
    assert list(frame.columns) == list(result.rows()[0])[1:]
    assert frame.columns["numel"] == [row["numel"] for row in result.rows()]
    assert all(type(value).__module__ == "builtins" for column in frame.columns.values() for value in column)


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match=r"pip install pandas, .* extra \[pandas\]"):
        random_spectra().to_pandas()


def test_notebooks_show_a_table_of_every_block(result: Tabular) -> None:
    html = result._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") >= 1 + len(list(result))  # type: ignore[call-overload]
    assert all(f">{name}</td>" in html for name in result)  # type: ignore[attr-defined]
    assert "<script" not in html and "parameters" in html


def test_a_notebook_shows_traces_norms_and_extremes_with_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(_: Spectra) -> None:
        raise AssertionError("A table that shows by itself must not compare all pairs of blocks.")

    monkeypatch.setattr(Spectra, "js_estimate", too_long)
    monkeypatch.setattr(Spectra, "mean_js_estimates", too_long)
    spectra = random_spectra()
    html = spectra._repr_html_()
    for title in ("parameters", "trace", "Frobenius norm", "smallest", "largest"):
        assert f">{title}</th>" in html
    assert "±" in html and "95 % bars, for probes and Lanczos steps" in html


def test_names_are_text_whatever_is_in_them() -> None:
    html = random_spectra(1, prefix="<b>&\x1b[31m")._repr_html_()
    assert "&lt;b&gt;&amp;\\x1b[31m.0/weight" in html and "<b>" not in html
