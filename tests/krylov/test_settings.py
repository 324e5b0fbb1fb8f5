"""What a job was asked for: checked once, stated alike wherever a caller meets it."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from enum import Enum
from typing import Any, get_args

import numpy as np
import pytest
import torch

import hvp_engine as he
from hvp_engine.cli import arguments, commands
from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.probes import Distribution
from hvp_engine.krylov.registry import AUTO, STORAGES, Storage
from hvp_engine.krylov.settings import JobSettings, Reorthogonalize
from hvp_engine.problem.precision import Precision

SETTINGS = {field.name: field.default for field in fields(JobSettings)}


@pytest.mark.parametrize(
    "call", [he.slq, he.plan, commands.slq, commands.plan], ids=["slq", "plan", "cli slq", "cli plan"]
)
def test_every_call_states_the_same_defaults(call: object) -> None:
    stated = {name: parameter.default for name, parameter in inspect.signature(call).parameters.items()}
    shared = {
        name: default.value if isinstance(default, Enum) else default
        for name, default in stated.items()
        if name in SETTINGS
    }
    assert shared == {name: SETTINGS[name] for name in shared}
    assert len(shared) >= 5


def test_slq_offers_every_setting() -> None:
    assert set(SETTINGS) <= set(inspect.signature(he.slq).parameters)


def test_the_command_line_offers_the_values_that_the_settings_take() -> None:
    for choices, values in (
        (arguments.Precision, get_args(Precision)),
        (arguments.Distribution, get_args(Distribution)),
        (arguments.Reorthogonalize, get_args(Reorthogonalize)),
        (arguments.Basis, (AUTO, *STORAGES)),
    ):
        assert {choice.value for choice in choices} == set(values)


def test_whole_numbers_of_any_library_become_plain_ones() -> None:
    given = JobSettings(steps=np.int64(7), probes=torch.tensor(3), seed=np.uint8(5), microbatch=np.int32(2))
    for name, value in (("steps", 7), ("probes", 3), ("seed", 5), ("microbatch", 2)):
        assert getattr(given, name) == value and type(getattr(given, name)) is int


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"basis": "fp16"}, "basis='fp16' is not one of 'auto', 'fp32', 'bf16', 'int8', 'fp32-offload'"),
        ({"basis": ["fp32"]}, "basis=.'fp32'. is not one of"),
        ({"reorthogonalize": "half"}, "reorthogonalize='half' is not one of 'full', 'selective', 'none'"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number of at least 1"),
        ({"tolerance": 0}, "tolerance=0 must be a finite number above 0"),
        ({"tolerance": 1e-300}, "tolerance=1e-300 is below what float64 can tell, 1e-12"),
        ({"tolerance": {"w2": 0.1}}, "no target named 'w2'"),
        ({"probes": 2, "first_probe": -1}, "first_probe=-1 must be a whole number of at least 0"),
        ({"first_probe": 4}, "first_probe=4 goes with a fixed number of probes only"),
        ({"probes": 2, "first_probe": 4, "tolerance": 0.1}, "give steps or probes, and no tolerance"),
        ({"microbatch": 0}, "microbatch=0 must be a whole number of at least 1"),
        ({"memory": -1}, "memory=-1 must be a positive number of bytes"),
        ({"precision": "fp8"}, "precision='fp8' is not one of"),
        ({"head_curvature_tolerance": 1.5}, "tolerance of 1.5"),
    ],
)
def test_what_is_no_setting_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        JobSettings(**changed)


@pytest.mark.parametrize(
    ("given", "steps", "probes", "tolerance"),
    [
        ({}, 100, 10, {"w1": 0.02}),
        ({"tolerance": 0.1}, 100, 10, {"w1": 0.1}),
        ({"tolerance": {"trace": 0.01, "js": 0.05}, "steps": 60}, 60, 10, {"js": 0.05, "trace": 0.01}),
        ({"steps": 100}, 100, 10, None),
        ({"probes": 3}, 100, 3, None),
        ({"steps": 7, "probes": 3}, 7, 3, None),
    ],
)
def test_a_job_adapts_unless_steps_or_probes_come_without_a_tolerance(
    given: dict[str, Any], steps: int, probes: int, tolerance: dict[str, float] | None
) -> None:
    settings = JobSettings(**given)
    assert (settings.steps, settings.probes, settings.tolerance) == (steps, probes, tolerance)
    assert replace(settings, basis="bf16").tolerance == tolerance
    assert settings.record().get("tolerance", None) == tolerance
    assert ("tolerance" in settings.record()) == (tolerance is not None)


def test_a_job_that_begins_with_probe_0_is_recorded_as_before_there_were_others() -> None:
    whole, part = JobSettings(probes=6), JobSettings(probes=2, first_probe=np.int64(4))
    assert list(part.numbers) == [4, 5] and list(whole.numbers) == [0, 1, 2, 3, 4, 5]
    assert "first_probe" not in whole.record() and part.record()["first_probe"] == 4


def test_products_in_float64_keep_float64_vectors() -> None:
    assert JobSettings(precision="fp64", basis="bf16").lanczos.kept == Storage(torch.float64)
    assert JobSettings(basis="bf16").lanczos.kept == STORAGES["bf16"]
    assert JobSettings(reorthogonalize="none").lanczos.kept is None


def test_a_block_asks_for_no_more_products_than_it_has_dimensions() -> None:
    assert JobSettings(steps=10, probes=3).products({"wide": 100, "narrow": 4}) == {"wide": 30, "narrow": 12}
