"""The published numbers in a run folder: there for other programs, and in nobody's way."""

import json
import math

import numpy as np
import pytest
from known_spectra import kinds, spectrum_of
from safetensors.numpy import load_file

from hvp_engine.results import record
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system import run_files


def spectra():
    blocks = [spectrum_of(name, values, 12) for name, values in kinds(200).items()]
    return Spectra([*blocks, spectrum_of("key", 1e-22 * kinds(200)["bulk"], 12)], {"config": {"precision": "fp64"}})


def test_a_folder_has_every_number_with_its_bar(tmp_path):
    run = spectra()
    run.save(tmp_path)
    estimates = json.loads((tmp_path / "manifest.json").read_text())["estimates"]
    trace = run["bulk"].trace()
    expected = {key: getattr(trace, key) for key in ("value", "stderr", "low", "high", "reading")}
    assert estimates["blocks"]["bulk"]["trace"] == expected
    assert set(estimates["blocks"]["bulk"]) == {"trace", "frobenius_norm", "smallest", "largest", "outliers"}
    assert estimates["js0"]["value"] == run.js0()
    assert estimates["js0"]["low"] < estimates["js0"]["value"] < estimates["js0"]["high"]
    assert estimates["zero_blocks"] == ["key"]
    arrays, js = load_file(tmp_path / "spectra.safetensors"), run.js_estimate()
    for name, matrix in (("/js", js.value), ("/js_low", js.low), ("/js_high", js.high)):
        np.testing.assert_array_equal(arrays[name], matrix)


def test_what_is_loaded_publishes_the_same_numbers(tmp_path):
    run = spectra()
    run.save(tmp_path)
    loaded = Spectra.load(tmp_path)
    np.testing.assert_array_equal(loaded.js_estimate().high, run.js_estimate().high)
    assert loaded.js0_estimate() == run.js0_estimate()
    loaded.save(tmp_path / "again")
    first, again = (path / "spectra.safetensors" for path in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_folders_without_the_numbers_are_read(tmp_path):
    run = spectra()
    run.save(tmp_path)
    document = run_files.read_manifest(tmp_path)
    del document["estimates"]
    arrays = load_file(tmp_path / "spectra.safetensors")
    kept = {name: array for name, array in arrays.items() if name not in record.MATRICES}
    run_files.write_run(tmp_path, document, kept)
    assert Spectra.load(tmp_path)["bulk"].nodes.tobytes() == run["bulk"].nodes.tobytes()


@pytest.mark.parametrize("estimates", [None, [], {"matrices": 3}, {"matrices": ["/js"]}])
def test_strange_estimates_do_not_ask_for_matrices(estimates):
    assert record.layout(estimates, 3) == {}


def test_what_is_not_finite_is_none_in_json():
    assert record.plain(Estimate(1.0, math.nan, -math.inf, math.nan, "ritz")) == {
        "value": 1.0, "stderr": None, "low": None, "high": None, "reading": "ritz"
    }  # fmt: skip


def test_numbers_that_cannot_be_computed_do_not_keep_a_run_from_being_saved(tmp_path):
    huge = Spectrum.from_tridiagonal("huge", 3, [[1e300, -1e300]], [[1e299]], [2], residuals=[1e299])
    run = Spectra([huge, spectrum_of("a", [1.0, 2.0, 3.0], 2)])
    run.save(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["estimates"]["js0"] is None
    assert list(Spectra.load(tmp_path)) == ["huge", "a"]
