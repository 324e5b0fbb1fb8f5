"""Summaries with numbers and bars of every kind, for what tabulates them."""

import math

from hvp_engine.results.account import Account
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.summary import NUMBERS, BlockSummary, Summary

NONE = Estimate(math.nan, math.nan, reading="averaged")
ADAPTED = Account((45, 45), 1, 4, 49, 1000, "tolerance", {})


def bar(value, half, reading="vr"):
    return Estimate(value, half / 2, value - half, value + half, reading)


def block_summary(name="w", numel=66_945_024, scale=1.0, zero=False, account=ADAPTED, **numbers):
    usual = {
        "trace": bar(12.3456 * scale, 0.21 * scale, "deflated"),
        "frobenius_norm": bar(5.4321 * scale, 0.0123 * scale),
        "smallest": Estimate(-0.5 * scale, math.nan, -0.5001 * scale, -0.5 * scale, "ritz"),
        "largest": Estimate(3.14159 * scale, math.nan, 3.14159 * scale, 3.141591 * scale, "ritz"),
        "outliers": Estimate(9.0, math.nan, 9.0, 11.0, "ritz"),
        "js0": bar(0.4321, 0.012, "averaged"),
    }
    if zero:
        usual = {kind: bar(0.0, 0.0) for kind in NUMBERS} | {"js0": NONE}
    return BlockSummary(name, numel, usual | numbers, zero, account)


def exact_summary(name="tiny"):
    numbers = {kind: bar(4.0, 0.0, "exact") for kind in NUMBERS} | {"js0": bar(0.5, 0.01, "averaged")}
    return block_summary(name, 64, account=Account((64, 64), 1, 0, 64, 1000, "exact", {}), **numbers)


def summary_of(*blocks, js0=None):
    return Summary(blocks, bar(0.512, 0.008, "averaged") if js0 is None else js0)
