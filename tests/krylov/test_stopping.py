"""The rule of an adaptive job: what a target is, when a block has met it, and what it needs where it has not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.stopping import Targets


def test_a_number_is_the_target_of_the_distribution() -> None:
    assert Targets.parse(0.02).record() == {"w1": 0.02}
    assert Targets.parse(np.float32(0.25)).record() == {"w1": 0.25}


def test_targets_go_by_their_names() -> None:
    wanted = {"js": 0.01, "trace": 2, "density": 0.1}
    assert Targets.parse(wanted).record() == wanted


@pytest.mark.parametrize(
    "nonsense",
    [
        *(True, math.nan, math.inf, 0.0, -0.1, 1.0, "0.02", None, [0.02], np.True_, {}, {"w1": 1.5}, {"js": 1.0}),
        *({"trace": 0.0}, {"density": math.nan}, {"trace": True}, {"w1": None}, {"trace": math.inf}),
    ],
)
def test_nonsense_is_refused(nonsense: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^tolerance.*\.$"):
        Targets.parse(nonsense)


@pytest.mark.parametrize(("typo", "meant"), [("jss", "js"), ("tr", "trace"), ("densities", "density"), ("W1", "w1")])
def test_an_unknown_target_is_refused_with_the_nearest_name(typo: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no target named {typo!r}.*Did you mean {meant!r}"):
        Targets.parse({typo: 0.01})
