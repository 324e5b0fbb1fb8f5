"""What every driver of the list has, read from its source: some need packages that are not installed here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hvp_engine.experiments import drivers
from hvp_engine.experiments.registry import DRIVERS, Driver

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


def test_every_driver_is_on_the_list() -> None:
    assert {path.stem for path in FOLDER.glob("[!_]*.py")} == {driver.module for driver in DRIVERS}
