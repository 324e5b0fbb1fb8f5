"""D3: which blocks are taken, what a run of seconds writes, and that its claim can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from zoo_entries import entry

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.drivers import four_blocks
from hvp_engine.experiments.four import four
from hvp_engine.experiments.result import Result


def test_a_tiny_run_compares_four_blocks_of_both_models(run_tiny: Callable[[str], Result]) -> None:
    result = run_tiny("four-blocks")
    assert [row[0] for row in result.table.rows] == ["vgg", "bert"]
    assert result.table.rows[1][1] == "1.query, 1.value, 1.fc1, embedding"
    assert [len(axes.lines) for axes in result.figure.axes] == [4, 2, 4, 2]


def test_of_a_network_that_is_no_transformer_the_ends_and_two_between_are_taken() -> None:
    toy = replace(entry(), choose=lambda model: {str(n): [f"{n}.weight"] for n in range(7)})
    assert list(four(toy)) == ["0", "2", "4", "6"]


def test_a_transformer_without_queries_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="No block of toy is a query"):
        four(replace(entry(), family="transformer"))


def test_the_claim_can_fail() -> None:
    assert four_blocks.gates([0.2, 0.2, 0.3], [0.6, 0.5, 0.6])[0].holds
    assert not four_blocks.gates([0.2, 0.2, 0.5], [0.6, 0.5, 0.6])[0].holds
