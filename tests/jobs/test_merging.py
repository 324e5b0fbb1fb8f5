"""Runs of some probes each, joined: the run of all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from problems import Case, gpt, mlp

import hvp_engine as he
from hvp_engine.results.spectra import Spectra

ARRAYS = ("alphas", "betas", "nodes", "weights", "steps", "residuals")


def part(case: Case, first: int, probes: int, **further: object) -> Spectra:
    settings = {"steps": 6, "precision": "fp64", "check": False, "progress": False, **further}
    return he.slq(case.model, case.loss, "parameter", data=case.data, first_probe=first, probes=probes, **settings)


@pytest.mark.parametrize("case", [mlp, gpt], ids=["mlp", "gpt"])
def test_a_job_of_later_probes_has_the_bits_of_the_whole_job(case: Callable[[], Case]) -> None:
    problem = case()
    whole, later = part(problem, 0, 5), part(problem, 3, 2)
    for name, spectrum in later.items():
        for key in ARRAYS:
            assert getattr(spectrum, key).tobytes() == getattr(whole[name], key)[3:].tobytes(), (name, key)
        assert spectrum.alphas.tobytes() != whole[name].alphas[:2].tobytes()
