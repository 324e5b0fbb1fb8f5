"""Files for other programs: what csv, json and npz have of a result."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from random_spectra import random_spectra
from test_eigenpairs import pairs
from test_sampled_results import some

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.results.export import export, json_text


def test_csv_has_the_rows_and_the_nodes_to_the_last_bit(tmp_path: Path) -> None:
    spectra = random_spectra()
    written = export(spectra, {}, tmp_path / "run.csv", "csv")
    assert written == [tmp_path / "run.csv", tmp_path / "run-nodes.csv"]
    rows, nodes = (list(csv.DictReader(path.read_text().splitlines())) for path in written)
    assert [row["block"] for row in rows] == list(spectra)
    for row, known in zip(rows, spectra.rows(), strict=True):
        assert list(row) == list(known)
        assert all(row[key] == ("" if value is None else str(value)) for key, value in known.items())
        assert float(row["trace"]) == known["trace"]
    assert [float(row["node"]) for row in nodes[:5]] == spectra["layer.0/weight"].nodes[0].tolist()


def test_a_result_without_further_tables_is_one_file(tmp_path: Path) -> None:
    assert export(some("norms"), {}, tmp_path / "n.csv", "csv") == [tmp_path / "n.csv"]
    assert "gradient_norm" in (tmp_path / "n.csv").read_text()


def test_json_has_the_record_and_the_arrays(tmp_path: Path) -> None:
    spectra = random_spectra()
    (path,) = export(spectra, spectra.summarize().record(), tmp_path / "run.json", "json")
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["blocks"][1]["trace"]["value"] == spectra["layer.1/weight"].trace().value
    assert document["arrays"]["layer.2/weight/weights"] == spectra["layer.2/weight"].weights.tolist()


def test_npz_has_columns_and_arrays(tmp_path: Path) -> None:
    for result, array in ((random_spectra(), "layer.0/weight/nodes"), (Eigensystem([pairs()]), "b/vectors")):
        (path,) = export(result, {}, tmp_path / "run.npz", "npz")
        with np.load(path, allow_pickle=False) as found:
            assert found["block"].tolist() == [row["block"] for row in result.rows()]
            assert np.array_equal(found[array], result.arrays()[array])
            assert set(found) == {*result.rows()[0], *result.arrays()}


def test_what_is_not_finite_is_null() -> None:
    assert json.loads(json_text({"a": [math.nan, 1.0], "b": (math.inf,)})) == {"a": [None, 1.0], "b": [None]}


def test_files_that_cannot_be_written_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="format='xlsx' is not one of 'csv', 'json', 'npz'"):
        export(random_spectra(), {}, tmp_path / "a", "xlsx")
    with pytest.raises(RunFolderError, match="nowhere"):
        export(random_spectra(), {}, tmp_path / "nowhere" / "a.csv", "csv")
