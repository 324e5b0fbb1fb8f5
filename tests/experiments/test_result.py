"""What drivers return: claims that can fail, and files that are whole."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from hvp_engine.errors import RunFolderError
from hvp_engine.experiments import figures
from hvp_engine.experiments.registry import Driver
from hvp_engine.experiments.result import Result, Table, at_least, at_most
from hvp_engine.system.json_files import read_json

DRIVER = Driver("trial", "T1", "Something is large.", "trial", 0.1)


def result(values: tuple[float, ...] = (2.0, 3.0)) -> Result:
    with figures.style():
        figure, axes = figures.page(1, 1, 2.0, 1.5)
        axes[0, 0].plot([1, 2], [3, 4])
    return Result(
        Table(("model", "loss", "runs"), (("a|b", 0.123456789, 3), ("c", math.inf, 1))),
        (at_least("It is large", "size", values, 1.5, "here"),),
        figure,
        {"steps": 3, "folder": Path("x"), "loss": math.nan},
        {"all": 0.25},
        notes=("It was easy.",),
        figures={"grid": figure},
        files={"numbers.bin": b"123"},
    )


def test_a_claim_holds_where_as_many_seeds_as_needed_are_on_its_side() -> None:
    assert at_least("", "", [2.0, 2.0], 2.0, "").holds and at_most("", "", [2.0, 2.0], 2.0, "").holds
    assert not at_least("", "", [2.0, 1.9], 2.0, "").holds
    assert at_least("", "", [2.0, 1.9], 2.0, "", needed=1).holds
    assert not at_most("", "", [2.0, 2.1], 2.0, "").holds


@pytest.mark.parametrize("claim", [at_least, at_most])
def test_neither_no_value_nor_nan_makes_a_claim_hold(claim) -> None:
    assert not claim("", "", [], 0.0, "").holds
    assert not claim("", "", [math.nan], 0.0, "").holds


def test_the_line_of_a_claim_names_its_seeds_and_the_value_nearest_to_failing() -> None:
    assert at_least("It is large", "ratio", [2.5, 1.9, 3.0], 1.4, "").line("D4") == (
        "D4 holds: It is large (3 of 3 seeds; smallest ratio 1.900)"
    )
    assert at_most("It is small", "gap", [0.01, 0.03], 0.02, "").line("D11") == (
        "D11 does not hold: It is small (1 of 2 seeds; largest gap 0.03000)"
    )
    assert at_least("It is large", "share", [0.75], 0.5, "").line("D9") == "D9 holds: It is large (share 0.7500)"


def test_a_result_lands_as_table_claims_figures_and_manifest(tmp_path: Path) -> None:
    out = tmp_path / "a" / "trial"
    result().write(out, DRIVER)
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "table.csv", "table.md", "claim.json", "figure.png", "figure.pdf", "grid.png", "grid.pdf",
        "numbers.bin",
    }  # fmt: skip
    assert list(csv.reader((out / "table.csv").read_text().splitlines())) == [
        ["model", "loss", "runs"], ["a|b", "0.123456789", "3"], ["c", "inf", "1"],
    ]  # fmt: skip
    assert (out / "table.md").read_text().splitlines()[2] == "| a\\|b | 0.1235 | 3 |"
    claims = read_json(out / "claim.json")
    assert claims["holds"] is True and claims["id"] == "T1"
    assert claims["claims"][0]["values"] == [2.0, 3.0] and claims["claims"][0]["paper"] is None
    manifest = read_json(out / "manifest.json")
    assert manifest["settings"] == {"steps": 3, "folder": "x", "loss": "nan"} and manifest["seconds"] == {"all": 0.25}
    assert manifest["notes"] == ["It was easy."] and "torch" in manifest["versions"]
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG") and (out / "numbers.bin").read_bytes() == b"123"


def test_a_claim_that_fails_is_said_so_on_disk(tmp_path: Path) -> None:
    result((2.0, 1.0)).write(tmp_path, DRIVER)
    claims = read_json(tmp_path / "claim.json")
    assert claims["holds"] is False and claims["claims"][0]["holds"] is False


def test_the_same_result_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        result().write(tmp_path / name, DRIVER)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another folder"):
        result().write(tmp_path / "file" / "trial", DRIVER)
