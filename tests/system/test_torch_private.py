"""Private names of PyTorch: all in one file, and products without any single one of them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hvp_engine
from hvp_engine.kernels import loader
from hvp_engine.system import torch_private

_PACKAGE = Path(hvp_engine.__file__).parent
_NAMES = re.findall(r'"(torch[\w.]*:[\w.]+)"', Path(torch_private.__file__).read_text())
_OF_BATCHED_PASSES = [name for name in _NAMES if re.search("legacy|vmapmode|batch_dim", name)]
# Without these the engine computes gradients that it does not use, and the planner counts the head as two operations.
_OF_WORK = [name for name in _NAMES if re.search("will_engine_execute|make_wrapper_subclass", name)]
_OF_PLANNING = [name for name in _NAMES if re.search("FakeTensorMode|TorchDispatchMode", name)]


@pytest.fixture(scope="module")
def findings() -> dict[str, dict[str, Any]]:
    """What the package does without each name."""
    here = Path(__file__).parent
    search = os.pathsep.join([str(_PACKAGE.parent), str(here.parent)])
    done = subprocess.run(
        [sys.executable, str(here / "without_torch_names.py")],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_name_was_left_out_once(findings: dict[str, dict[str, Any]]) -> None:
    assert len(_NAMES) > 10
    assert sorted(findings) == sorted(["", *_NAMES])


@pytest.mark.parametrize("name", ["", *_NAMES])
def test_products_are_right_without_a_private_name(findings: dict[str, dict[str, Any]], name: str) -> None:
    found, usual = findings[name], findings[""]
    assert found["error"] <= 1e-5
    assert found["transformed"] <= 1e-6
    for key in ("fused", "dropout", "batchnorm"):
        assert found[key] == usual[key], key
    of_kernels = {"attention", "embedding", "silu"} if loader.missing_reason is None else set()
    assert of_kernels | {"linear_cross_entropy"} <= set(usual["fused"])
    assert usual["dropout"] == ["0", "1"]
    assert usual["batchnorm"] == ["2"]


@pytest.mark.parametrize("name", ["", *_NAMES])
def test_only_what_the_older_vmap_needs_ends_batched_passes(findings: dict[str, dict[str, Any]], name: str) -> None:
    assert (findings[name]["single"] is not None) == (name in _OF_BATCHED_PASSES)


@pytest.mark.parametrize("name", ["", *_NAMES])
def test_the_planner_counts_the_same_or_says_what_it_needs(findings: dict[str, dict[str, Any]], name: str) -> None:
    counted = findings[name]["counted"]
    if name in _OF_PLANNING:
        assert re.fullmatch(r"Planning needs PyTorch's \w+, which PyTorch .* supported\.", counted)
    else:
        assert counted == pytest.approx(findings[""]["counted"], rel=0.02 if name in _OF_WORK else 1e-12)


def test_a_storage_without_a_number_is_told_by_its_address_or_by_itself() -> None:
    tensor = torch.zeros(4)
    assert torch_private.storage_key(tensor.untyped_storage()) == torch_private.storage_key(
        tensor[1:].untyped_storage()
    )
    assert torch_private.storage_key(tensor.untyped_storage()) != torch_private.storage_key(
        torch.zeros(4).untyped_storage()
    )
    assert torch_private.storage_key(SimpleNamespace(data_ptr=lambda: 64)) == 64  # type: ignore[arg-type]
    nowhere = torch.nn.Module()
    nowhere.data_ptr = lambda: 0
    assert torch_private.storage_key(nowhere) is nowhere  # type: ignore[arg-type]


def test_an_operation_without_a_schema_counts_as_one_that_makes_new_tensors() -> None:
    aten = torch.ops.aten
    operations = (aten.t.default, aten.detach.default, aten.mm.default, aten.add_.Tensor)
    assert [torch_private.is_view(operation) for operation in operations] == [True, True, False, False]
    assert torch_private.is_view(SimpleNamespace()) is False


class _Uncounted(torch.Tensor):
    @property
    def _version(self) -> int:
        raise AttributeError("_version")


@pytest.mark.parametrize("kind", [torch.Tensor, _Uncounted])
def test_the_count_of_writes_changes_with_each_write_and_with_nothing_else(kind: type[torch.Tensor]) -> None:
    for tensor in (torch.zeros(3, 4), torch.zeros(4, 3, dtype=torch.bfloat16).T, torch.zeros(()), torch.zeros(2) > 0):
        parameter = tensor.as_subclass(kind)
        before = torch_private.write_count(parameter)
        assert torch_private.write_count(parameter) == before
        tensor.view(-1)[-1:].fill_(1) if tensor.is_contiguous() else tensor[2, 3].fill_(1)
        assert torch_private.write_count(parameter) != before
    assert torch_private.write_count(torch.zeros(0).as_subclass(kind)) == torch_private.write_count(
        torch.zeros(0).as_subclass(kind)
    )


# Private attributes of PyTorch's objects, which say nothing of PyTorch where they are read.
_ATTRIBUTES = ("_schema", "_version", "_cdata")


def _private_uses(source: str) -> Iterator[str]:
    """Names below torch with an underscore in front of a part that a module imports or reaches, and `_ATTRIBUTES`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if node.attr in _ATTRIBUTES:
                yield names[0]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] in ("torch", "nn", "F", "Tensor") and any(re.match("_(?!_)", part) for part in parts):
                yield name


def test_no_other_module_uses_a_private_name_of_pytorch() -> None:
    below = "from torch._C import a\nimport torch._x\nb = torch.nn._y(3)\nself._z = torch.add"
    assert list(_private_uses(below)) == ["torch._C.a", "torch._x", "torch.nn._y"]
    assert list(_private_uses("f(t)._version + op._schema.name")) == ["f(t)._version", "op._schema"]
    uses = {
        str(path.relative_to(_PACKAGE)): found
        for path in _PACKAGE.rglob("*.py")
        if path.name != "torch_private.py" and (found := list(_private_uses(path.read_text())))
    }
    assert uses == {}
