"""Traces, diagonals and norms as they are kept, read, shaped and tabulated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import RunFolderError
from hvp_engine.results.diagonals import Diagonal, Diagonals
from hvp_engine.results.estimate import Estimate, relative
from hvp_engine.results.norms import BlockNorms
from hvp_engine.system.json_files import read_json, write_json

KEPT = {"a": Estimate(2.0, 0.1, 1.8, 2.2, "xtrace"), "b": Estimate(-1.0, math.nan)}


def some(kind: str) -> Any:
    numel = {"a": 6, "b": 2}
    manifest = {"sampling": {"a": {"products": 40}, "b": {"products": 2}}, "not_reached": ["a"]}
    if kind == "traces":
        return he.Traces(KEPT, numel, manifest)
    if kind == "norms":
        return he.Norms(
            {name: BlockNorms(numel[name], 0.5, KEPT["a"], bar) for name, bar in KEPT.items()}, numel, manifest
        )
    value, error = torch.arange(8.0).double(), torch.full((8,), 0.5).double()
    parts = {"a": (("w", (2, 2)), ("w", (2,))), "b": (("v", (2,)),)}
    cut = {"a": slice(0, 6), "b": slice(6, 8)}
    found = {name: Diagonal(value[c], error[c], 2 * error[c], parts[name]) for name, c in cut.items()}
    return Diagonals(found, numel, manifest)


KINDS = ["traces", "norms", "diagonals"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read(tmp_path: Path, kind: str) -> None:
    results = some(kind)
    results.save(tmp_path)
    loaded = type(results).load(tmp_path)
    assert loaded.summary() == results.summary() and loaded.record() == results.record()
    assert loaded.manifest == results.manifest and loaded.numel == results.numel
    if kind == "diagonals":
        assert all(torch.equal(loaded[name].high, found.high) for name, found in results.items())
        assert all(loaded[name].parts == found.parts for name, found in results.items())
    else:
        assert repr(dict(loaded)) == repr(dict(results))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "harm",
    [
        lambda document: document.pop("blocks"),
        lambda document: document.update(blocks=[]),
        lambda document: document["blocks"][0].update(numel=0),
        lambda document: document["blocks"][1].update(name="a"),
        lambda document: document["blocks"][0].update(trace="2", parts=[["w", [2, -3]]]),
        lambda document: document["blocks"][0].update(trace={"value": 1}, parts=[["w", [5]]]),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, kind: str, harm: Any) -> None:
    results = some(kind)
    results.save(tmp_path)
    document = read_json(tmp_path / "manifest.json")
    harm(document)
    write_json(tmp_path / "manifest.json", document)
    with pytest.raises(RunFolderError, match="damaged"):
        type(results).load(tmp_path)


def test_entries_are_shaped_like_the_parameters() -> None:
    diagonals = some("diagonals")
    shaped = diagonals["a"].tensors()
    assert {name: tuple(tensor.shape) for name, tensor in shaped.items()} == {"w[0]": (2, 2), "w[1]": (2,)}
    assert shaped["w[0]"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert diagonals["b"].tensors(diagonals["b"].stderr)["v"].tolist() == [0.5, 0.5]
    case = mlp()
    found = he.diagonal(case.model, case.loss, data=case.data, products=8, check=False)["full"].tensors()
    assert {name: tensor.shape for name, tensor in found.items()} == {
        n: p.shape for n, p in case.model.named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_tables_have_a_row_for_each_block_and_mark_what_was_not_reached(kind: str) -> None:
    lines = some(kind).summary().splitlines()
    assert len(lines) == 4 and lines[2].startswith("a") and lines[2].endswith("40!") and lines[3].endswith("2")
    if kind != "diagonals":
        assert "2.00 ± 0.20" in lines[2] and "-1.0 ± ?" in lines[3]


def test_the_error_of_a_diagonal_is_relative_to_its_length() -> None:
    assert some("diagonals")["b"].error == pytest.approx(math.sqrt(0.5) / math.sqrt(36 + 49))
    assert relative(0.0, 0.0) == 0.0 and relative(1.0, 0.0) == math.inf


def test_an_unknown_block_is_named() -> None:
    with pytest.raises(KeyError, match="'c' is none of the blocks a, b"):
        some("traces")["c"]
    assert "c" not in some("traces") and repr(some("traces")) == "Traces(['a', 'b'])"
