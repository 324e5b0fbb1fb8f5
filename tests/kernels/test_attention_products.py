"""The counted tile products of the native attention kernels against their sources."""

import re
from pathlib import Path

import pytest
import torch

from hvp_engine.kernels.attention import counts_of
from hvp_engine.kernels.records import AttentionSizes

SOURCES = Path(__file__).parents[2] / "csrc" / "cpu" / "attention"
SIZES = AttentionSizes(torch.float32, 1, 1, 1, 64, 64, 32, 32)
# What multiplies tiles: `multiply` itself, and in second.cpp the lambdas around it.
CALLS = {
    "forward.cpp": r"\b(?:scores_of|multiply<T>)\(",
    "backward.cpp": r"\b(?:scores_of|multiply<T>)\(",
    "second.cpp": r"\b(?:scores_of|product|to_queries|to_keys)\(\w",
}


def calls(name):
    return len(re.findall(CALLS[name], (SOURCES / name).read_text()))


def test_a_pass_that_does_everything_is_counted_with_every_product_of_its_source():
    counts = counts_of("native")
    assert counts.forward(SIZES).products == calls("forward.cpp") == 2
    assert counts.backward((True,) * 3, SIZES).products == calls("backward.cpp") == 5
    assert counts.second((True,) * 3, (True,) * 4, SIZES).products == calls("second.cpp") == 12


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_less_is_formed_where_less_is_given_or_wanted(backend):
    counts = counts_of(backend)
    whole = counts.second((True,) * 3, (True,) * 4, SIZES)
    for place in range(3):
        given = tuple(i != place for i in range(3))
        assert counts.second(given, (True,) * 4, SIZES).products < whole.products
    for place in range(3):
        wanted = tuple(i != place for i in range(4))
        assert counts.second((True,) * 3, wanted, SIZES).products < whole.products
