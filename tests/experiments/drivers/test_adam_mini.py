from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvp_engine.experiments import partition
from hvp_engine.experiments.drivers import adam_mini
from hvp_engine.experiments.registry import Setting


def test_tiny_run_finds_heads_in_queries_and_keys_and_rows_elsewhere(tmp_path: Path) -> None:
    result = adam_mini.run(Setting("tiny", 1, tmp_path))
    assert result.holds, [claim.line("F1") for claim in result.claims]
    assert len(result.table.rows) == 2 * 6  # one layer, twice
    assert {row[2] for row in result.table.rows if "wq" in str(row[1])} == {"heads"}


def test_groups_are_heads_of_queries_and_keys_and_rows_of_the_rest() -> None:
    corpus = partition.corpus_of(Setting("tiny", 1, Path()))
    model = partition.network(Setting("tiny", 1, Path()), corpus, 0)
    for projection, groups, size in (("attn.wk", 4, 64), ("attn.wv", 16, 16), ("c_fc", 64, 16), ("c_proj", 16, 64)):
        found = partition.groups_of(model, f"layers.0.{projection}.weight")
        assert [len(group) for group in found] == [size] * groups
        np.testing.assert_array_equal(np.concatenate(found), np.arange(groups * size))


def test_a_matrix_without_groups_has_a_ratio_of_one() -> None:
    setting = Setting("tiny", 1, Path())
    model = partition.network(setting, partition.corpus_of(setting), 0)
    matrix = np.random.default_rng(0).standard_normal((256, 256))
    name = "layers.0.attn.wq.weight"
    share, random = partition.divided(model, {name: matrix + matrix.T})[name]
    assert share / random == pytest.approx(1.0, abs=0.05)
