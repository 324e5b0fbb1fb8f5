"""docs/run_folder.md: the reader works as it stands, and what the page lists is what there is."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
from problems import mlp

import hvp_engine as he
from hvp_engine.results.spectra import Spectra

PAGE = (Path(__file__).parents[1] / "docs" / "run_folder.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def reader() -> str:
    (found,) = [block for block in BLOCKS if "def read_run" in block]
    return found


def run(folder: Path) -> Spectra:
    case = mlp()
    blocks = ["0.weight", "2.bias"]
    return he.slq(
        case.model, case.loss, blocks, data=case.data, steps=4, probes=2, data_error=True, check=False, out=folder
    )


def test_the_reader_needs_numpy_alone_and_ten_lines() -> None:
    tree = ast.parse(reader())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"json", "numpy"} and not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno is not None and function.end_lineno - function.lineno <= 10


def test_the_reader_gives_the_bits_that_were_saved(tmp_path: Path) -> None:
    spectra = run(tmp_path)
    space: dict[str, object] = {}
    exec(reader().partition("\nmanifest, arrays")[0], space)
    manifest, arrays = space["read_run"](tmp_path)  # type: ignore[operator]
    assert manifest["run"] == Spectra.load(tmp_path).manifest
    for name, spectrum in spectra.items():
        for key in ("alphas", "betas", "nodes", "weights", "steps", "residuals", "singles"):
            assert arrays[f"{name}/{key}"].tobytes() == getattr(spectrum, key).tobytes()
            assert arrays[f"{name}/{key}"].shape == getattr(spectrum, key).shape
    assert np.array_equal(arrays["/js"], spectra.js_estimate().value, equal_nan=True)
    assert set(arrays) == {f"{name}/{key}" for name in spectra for key in arrays_of_blocks()} | {
        "/js",
        "/js_low",
        "/js_high",
    }


def arrays_of_blocks() -> set[str]:
    """The names in the table of arrays."""
    table = PAGE.partition("## Arrays of spectra")[2].partition("##")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def keys_under(heading: str) -> set[str]:
    """The names in the first column of the first table under a heading, or a line of text."""
    table = PAGE.partition(heading)[2].lstrip("\n").partition("\n\n")[0]
    return {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_every_key_of_a_manifest_is_on_the_page(tmp_path: Path) -> None:
    run(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    listed = keys_under("## The manifest\n") | {"sha256", "checksum"}
    assert set(document) == listed
    conditional = {"basis", "ghosts", "adaptive", "merged", "training"}
    assert set(document["run"]) == keys_under("Under `run`:\n") - conditional
    assert set(document["run"]["origin"]) == {"date", "host", "command", "model"}


def test_what_show_prints_is_on_the_page(tmp_path: Path) -> None:
    from hvp_engine.cli.kinds import kind_of

    run(tmp_path)
    kind = kind_of(tmp_path)
    record = kind.record(kind.load(tmp_path))
    table = PAGE.partition("`show --json` prints")[2].partition("`export` writes")[0]
    assert {*record, "run"} <= set(re.findall(r"`(\w+)`", table))
    assert set(record["blocks"][0]) <= set(re.findall(r"`(\w+)`", table))
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {*record, "run", "matrix"}
