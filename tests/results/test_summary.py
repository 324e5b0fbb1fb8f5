"""The numbers of a run in one place."""

import json
import math

import pytest
from random_spectra import random_spectra
from summaries import block_summary, exact_summary, summary_of

from hvp_engine.results.estimate import Estimate
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.summary import NUMBERS


def test_every_block_has_every_number_with_its_bar():
    spectra = random_spectra(3)
    found = spectra.summarize()
    assert [block.name for block in found.blocks] == list(spectra)
    for block, spectrum in zip(found.blocks, spectra.values(), strict=True):
        assert tuple(block.numbers) == NUMBERS
        assert block.numbers["trace"] == spectrum.trace()
        assert block.numbers["largest"] == spectrum.largest(1)
        assert block.numbers["js0"] == spectra.mean_js_estimates()[block.name]
        assert block.account.products == spectrum.steps.sum()
    assert found.js0 == spectra.js0_estimate()


def test_readings_leave_exact_blocks_out():
    readings = summary_of(block_summary("a"), exact_summary()).readings()
    assert readings["trace"] == ["deflated"]
    assert readings["js0"] == ["averaged"]
    assert summary_of(exact_summary()).readings()["trace"] == []


def test_the_record_is_json_without_nan():
    nothing = Estimate(math.nan, math.nan)
    found = summary_of(block_summary("a", largest=Estimate(1.0, 0.0, 1.0, math.inf, "ritz")), js0=nothing)
    text = json.dumps(found.record(), allow_nan=False)
    block = json.loads(text)["blocks"][0]
    assert block["trace"].pop("reading") == "deflated"
    assert block["trace"] == pytest.approx({"value": 12.3456, "stderr": 0.105, "low": 12.1356, "high": 12.5556})
    assert block["largest"]["high"] is None
    assert (block["products"], block["products_at_ceilings"], block["stopped_by"]) == (49, 1000, "tolerance")
    assert json.loads(text)["js0"]["value"] is None


def test_a_saved_run_has_the_same_numbers(tmp_path):
    spectra = random_spectra(2)
    spectra.save(tmp_path)
    assert Spectra.load(tmp_path).summarize().record() == spectra.summarize().record()
