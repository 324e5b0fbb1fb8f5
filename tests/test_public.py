"""What the package says is public: listed, described, and nothing else beside it."""

from __future__ import annotations

import inspect
import re
from types import FunctionType, ModuleType
from typing import Any

import pytest

import hvp_engine as he

MODULES = [he, he.ops, he.errors, he.losses, he.blocks]
NAMES = [(module, name) for module in MODULES for name in module.__all__]
FUNCTIONS = [(module, name) for module, name in NAMES if isinstance(getattr(module, name), FunctionType)]
SHAPE = re.compile(r"\(\w[\w ]*, [\w ,.]*\)|\(\.\.\., |shape|[Ss]calar|Scalar|0-dim")


def words(module: ModuleType, name: str) -> str:
    return inspect.getdoc(getattr(module, name)) or ""


def label(value: Any) -> str:
    return value.__name__ if isinstance(value, ModuleType) else str(value)


@pytest.mark.parametrize("module", MODULES, ids=label)
def test_only_public_names_are_listed(module: ModuleType) -> None:
    public = [name for name in dir(module) if not name.startswith("_")]
    assert public == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", MODULES, ids=label)
def test_a_package_says_what_is_in_it(module: ModuleType) -> None:
    text = inspect.getdoc(module) or ""
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, FunctionType) and not name.endswith("_ref") and module is not he.losses:
            assert f":func:`{name}`" in text, name
        if isinstance(value, ModuleType):
            assert f"hvp_engine.{name}`" in text, name
        if module is he.errors:
            assert f":class:`{name}`" in text, name


@pytest.mark.parametrize(("module", "name"), NAMES, ids=label)
def test_every_public_name_is_described(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if isinstance(value, (FunctionType, type, ModuleType)):
        assert value.__doc__, name
        assert words(module, name).partition("\n")[0].endswith((".", ":")), name


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=label)
def test_every_public_function_gives_arguments_result_and_errors(module: ModuleType, name: str) -> None:
    text = words(module, name)
    if name.endswith("_ref"):  # in plain PyTorch, what the operation of that name does
        assert f"`{name.removesuffix('_ref')}`" in text
        return
    if inspect.signature(getattr(module, name)).parameters:
        for section in ("Args:", "Returns:", "Raises:"):
            assert f"\n{section}\n" in text, f"{name} has no {section}"
        described = text.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
        for parameter in inspect.signature(getattr(module, name)).parameters:
            assert re.search(rf"^    [\w, ]*\b{parameter}\b[\w, ]*:", described, re.M), f"{name}: {parameter}"


@pytest.mark.parametrize("name", [name for name in he.ops.__all__ if inspect.isfunction(getattr(he.ops, name))])
def test_every_operation_gives_shapes(name: str) -> None:
    if not name.endswith("_ref") and inspect.signature(getattr(he.ops, name)).parameters and name != "fuse_lm_head":
        assert SHAPE.search(words(he.ops, name).partition("Args:")[2]), name


@pytest.mark.parametrize("name", he.losses.__all__)
def test_every_loss_gives_shapes(name: str) -> None:
    assert SHAPE.search(words(he.losses, name).partition("Args:")[2])


def test_errors_are_all_of_one_kind_and_none_is_missing() -> None:
    from hvp_engine import errors

    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.HvpEngineError) for name in errors.__all__)
