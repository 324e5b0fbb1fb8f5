"""Numbers of what lies between blocks: averaged, tabulated, kept in a folder, and refused where they are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.off_diagonal import SUMS, OffDiagonal
from hvp_engine.system import run_files

NUMEL = {"first": 3, "second [bold]": 40_000}


def sums(probes: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    h, d = rng.standard_normal((2, probes, len(NUMEL), 9))
    d = h + 0.5 * d
    return np.stack([(h * h).sum(-1), (d * d).sum(-1), ((h - d) ** 2).sum(-1), (h * d).sum(-1)], axis=-1)


def test_numbers_are_means_over_vectors_of_all_rows_or_of_a_blocks_rows() -> None:
    given = sums()
    found = OffDiagonal(NUMEL, given)
    for agreement, own in ((found.whole, given.sum(1)), (found["second [bold]"], given[:, 1])):
        ratios, cosines = np.sqrt(own[:, 2] / own[:, 0]), own[:, 3] / np.sqrt(own[:, 0] * own[:, 1])
        for estimate, values in ((agreement.ratio, ratios), (agreement.cosine, cosines)):
            assert estimate.value == pytest.approx(values.mean())
            assert estimate.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(6))
            assert estimate.high - estimate.value == pytest.approx(2.571 * estimate.stderr)
    assert (found.ratio, found.cosine) == found.whole
    with pytest.raises(KeyError, match="is none of the blocks first"):
        found["third"]


def test_the_table_has_every_block_and_what_to_know_of_all() -> None:
    text = OffDiagonal(NUMEL, sums(), 7, 1e-6, {"config": {"matrix": "ggn"}}).summary()
    assert "H the ggn, D its block diagonal; means over 6 random vectors v" in text
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == ["all blocks", "first", "second [bold]"]
    assert "40,003" in lines[3] and "40,000" in lines[5] and all("±" in line for line in lines[3:6])
    assert lines[6:] == [
        "A product is known to 1.0e-06 of its length: a smaller ratio is rounding.",
        "7 trainable parameters are in no block, and do not enter.",
    ]
    alone = OffDiagonal(NUMEL, sums(1)).summary()
    assert "means over 1 random vector v" in alone and "± ?" in alone and "in no block" not in alone


def test_a_folder_gives_the_same_bits_back(tmp_path: Path) -> None:
    found = OffDiagonal(NUMEL, sums(), 7, 1e-6, {"config": {"seed": 3}})
    found.save(tmp_path)
    again = OffDiagonal.load(tmp_path)
    assert again.sums.tobytes() == found.sums.tobytes() and list(again) == list(NUMEL)
    assert (again.numel, again.outside, again.noise, again.manifest) == (NUMEL, 7, 1e-6, {"config": {"seed": 3}})
    assert again.summary() == found.summary()
    published = json.loads((tmp_path / "manifest.json").read_text())["off_diagonal"]
    assert published["whole"]["cosine"]["value"] == found.cosine.value
    assert published["blocks"]["first"]["ratio"]["high"] == found["first"].ratio.high


def test_numbers_that_there_are_not_are_none_in_the_folder(tmp_path: Path) -> None:
    OffDiagonal(NUMEL, np.zeros((2, 2, SUMS))).save(tmp_path)
    assert OffDiagonal.load(tmp_path).record()["whole"]["ratio"]["value"] is None
    assert math.isnan(OffDiagonal.load(tmp_path).ratio.value)


@pytest.mark.parametrize("change", [{"blocks": []}, {"off_diagonal": {}}, {"blocks": [{"name": "a", "numel": 0}]}])
def test_a_folder_that_holds_something_else_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    found = OffDiagonal(NUMEL, sums())
    blocks = [{"name": name, "numel": size} for name, size in NUMEL.items()]
    run_files.write_run(
        tmp_path, {"run": {}, "blocks": blocks, "off_diagonal": found.record(), **change}, {"sums": found.sums}
    )
    with pytest.raises(RunFolderError, match="damaged"):
        OffDiagonal.load(tmp_path)


def test_a_folder_with_impossible_numbers_is_damaged(tmp_path: Path) -> None:
    found = OffDiagonal(NUMEL, sums())
    blocks = [{"name": name, "numel": size} for name, size in NUMEL.items()]
    for wrong in (-found.sums, np.full_like(found.sums, np.nan)):
        run_files.write_run(tmp_path, {"run": {}, "blocks": blocks, "off_diagonal": found.record()}, {"sums": wrong})
        with pytest.raises(RunFolderError, match="no sums of squares"):
            OffDiagonal.load(tmp_path)


def test_sums_that_are_none_are_refused() -> None:
    for wrong in (sums()[:, :1], sums()[0], sums()[..., :3], sums()[:0]):
        with pytest.raises(ConfigurationError, match=r"must have shape \(probes, 2, 4\)"):
            OffDiagonal(NUMEL, wrong)
    with pytest.raises(ConfigurationError, match="must be finite"):
        OffDiagonal(NUMEL, sums() * np.inf)
