"""What blocks cost, as a manifest says it."""

import math

import numpy as np
import pytest

from hvp_engine.results.account import accounts
from hvp_engine.results.spectrum import Spectrum


def spectrum(name="a", steps=(4, 3), singles=0):
    probes = len(steps)
    return Spectrum.from_tridiagonal(
        name, 1000, np.ones((probes, 4)), np.ones((probes, 3)), steps, singles=np.ones((singles, 3)), deflated=3
    )


def account(block=None, targets=None, **shape):
    manifest = {} if block is None else {"adaptive": {"targets": targets or {}, "blocks": {"a": block}}}
    return accounts([spectrum(**shape)], manifest)["a"]


def test_a_fixed_job_spent_what_its_spectra_show():
    found = account()
    assert (found.steps, found.probes, found.products, found.ceiling) == ((3, 4), 2, 7, None)
    assert (found.stopped_by, dict(found.missed), found.shape) == ("asked", {}, "3–4 x 2")


def test_an_adaptive_job_says_what_it_saved_and_what_it_did_not_reach():
    block = {
        "products": 9,
        "ceiling": 1000,
        "stopped_by": "ceiling of steps",
        "errors": {"w1": 0.034},
        "not_reached": ["w1", "js"],
    }
    found = account(block, {"w1": 0.02}, steps=(4,), singles=5)
    assert (found.products, found.ceiling, found.stopped_by) == (9, 1000, "ceiling of steps")
    assert found.missed["w1"] == (0.034, 0.02)
    assert all(map(math.isnan, found.missed["js"]))
    assert found.shape == "4 x 1 + 5"


def test_an_exact_block_has_no_steps():
    assert account({"products": 1000, "ceiling": 2000, "stopped_by": "exact"}).shape == "exact"


@pytest.mark.parametrize(
    "adaptive",
    [
        None,
        5,
        {"blocks": 5},
        {"blocks": {"a": [1]}},
        {"blocks": {"b": {"products": 5}}},
        {"blocks": {"a": {}}},
    ],
)
def test_what_is_no_account_is_left_out(adaptive):
    found = accounts([spectrum()], {"adaptive": adaptive})["a"]
    assert (found.products, found.ceiling, found.stopped_by) == (7, None, "asked")


def test_a_strangers_account_is_read_as_far_as_it_is_one():
    found = account(
        {"products": "many", "ceiling": -5, "stopped_by": "\x1b" * 1000, "errors": 3, "not_reached": {"w1": 1}}
    )
    assert (found.products, found.ceiling) == (7, None)
    assert len(found.stopped_by) <= 20
    assert found.stopped_by.isprintable()
    assert not found.missed
    assert all(name.isprintable() for name in account({"not_reached": ["\x1b[2J", ["w1"], 3] * 1000}).missed)
    assert math.isnan(account({"not_reached": ["w1"], "errors": {"w1": "big"}}).missed["w1"][0])
