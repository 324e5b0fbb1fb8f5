"""What every driver of the list has, read from its source: some need packages that are not installed here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hvp_engine.experiments import cache, drivers
from hvp_engine.experiments.registry import DRIVERS, Driver
from hvp_engine.experiments.result import Result
from hvp_engine.system.json_files import read_json

FOLDER = Path(drivers.__path__[0])


@pytest.fixture(params=DRIVERS, ids=lambda driver: driver.id)
def driver(request: pytest.FixtureRequest) -> Driver:
    return request.param


def parsed(driver: Driver) -> ast.Module:
    return ast.parse((FOLDER / f"{driver.module}.py").read_text())


def test_a_driver_of_the_list_has_a_file_with_run(driver: Driver) -> None:
    functions = [node.name for node in parsed(driver).body if isinstance(node, ast.FunctionDef)]
    assert "run" in functions


def test_what_a_driver_reads_of_set_is_on_its_line(driver: Driver) -> None:
    read = {
        call.args[0].value
        for call in ast.walk(parsed(driver))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "option"
        and isinstance(call.args[0], ast.Constant)
    }
    assert read <= set(driver.options)


def test_a_plan_for_trained_models_has_their_trainings(driver: Driver) -> None:
    stages = {stage for of_size in cache.STAGES.values() for stage in of_size} - {"0.5"}  # which is a grey too
    nodes = list(ast.walk(parsed(driver)))
    looks = any(isinstance(node, ast.Constant) and node.value in stages for node in nodes) or any(
        isinstance(node, ast.ImportFrom) and node.module == cache.__name__ and "STAGES" in {n.name for n in node.names}
        for node in nodes
    )
    plans = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "plan"]
    if looks and plans:
        called = {node.id for node in ast.walk(plans[0]) if isinstance(node, ast.Name)}
        assert "planned_curves" in called


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver.reads], ids=lambda driver: driver.id)
def test_what_a_driver_reads_is_in_its_manifest_with_licence_and_digest(
    driver: Driver, run_tiny: Callable[[str], Result], shared_results: Path
) -> None:
    run_tiny(driver.name)
    settings = read_json(shared_results / driver.name / "manifest.json")["settings"]
    found = list(described(settings["data"]) if "data" in settings else described(settings))
    assert found and all(source["licence"] and source["origin"] and len(source["digest"]) == 32 for source in found)


def described(value: Any) -> Iterator[Mapping[str, str]]:
    """Yield what is said of data, at any depth."""
    if isinstance(value, dict):
        if {"name", "licence", "origin", "digest"} <= value.keys():
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from described(inner)


def test_every_driver_is_on_the_list() -> None:
    assert {path.stem for path in FOLDER.glob("[!_]*.py")} == {driver.module for driver in DRIVERS}
