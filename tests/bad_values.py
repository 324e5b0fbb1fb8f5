"""Numbers, words, paths and flags that users pass by mistake, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

Make = Callable[[], Any]


def each(*values: Any) -> list[Make]:
    """Make values that need not be made anew for every call."""
    return [lambda value=value: value for value in values]


class Whole:
    """A whole number of a kind of its own."""

    def __index__(self) -> int:
        return 2


NUMBERS: list[Make] = [
    *each(-1, 0, 1.5, True, "3", None, float("nan"), float("inf"), 10**30, -(10**30), 10**400),
    *each(np.int64(2), np.float32(2), torch.tensor(2), Fraction(2), [2], Whole(), b"2", 2j),
]
WORDS: list[Make] = [
    lambda value=value: value for value in (None, 3, "", "FP32", "float32", torch.float32, ["fp32"], "ﬀ", True)
]
PATHS: list[Make] = [
    *each(3, "", "a\0b", "x" * 5000, b"run", [], Path("/proc/nothing/here"), "/dev/null"),
]
TOLERANCES: list[Make] = [
    *NUMBERS,
    *each(1e-300, 1e-12, 0.5, 1.0, {}, {"w1": 0.1}, {"w1": -1}, {"w1": "a"}, {"w1": True}, {"x": 0.1}, {3: 1}),
    *each({"trace": 0}, {"trace": 1e-30}, {"js": float("nan")}, "w1=0.1"),
]
OPERATORS: list[Make] = [*WORDS, *each("GGN", b"ggn", {"ggn": 1}, object(), type, "ggn", "residual", "fisher")]
AXES: list[Make] = [
    *each("auto", "off", "", 3, True, [], {}, {"probes": 1}, {"probes": 0}, {"probes": 2}, {"probes": "a"}),
    *each({"probes": None}, {"data": 1.0}, {"data": 10**30}, {"x": 1}, {3: 1}),
]
FLAGS: list[Make] = each("yes", 2, [], np.True_, 0.5)
