from __future__ import annotations

from pathlib import Path

import pytest

from hvp_engine.experiments.drivers import off_diagonal_strength
from hvp_engine.experiments.registry import Setting

pytest.importorskip("sklearn", reason="the digits are in scikit-learn")


def test_tiny_run_finds_what_the_exact_net_says(tmp_path: Path) -> None:
    result = off_diagonal_strength.run(Setting("tiny", 1, tmp_path / "off-diagonal-strength"))
    assert result.holds, [claim.line("F7") for claim in result.claims]
    assert [row[:2] for row in result.table.rows] == [("mlp", "init"), ("mlp", "1.0"), ("exact MLP", "init")]
    assert [text.get_text() for text in result.figure.axes[0].get_legend().get_texts()] == ["init", "trained"]
    for _, _, ratio, cosine, _ in result.table.rows[:2]:
        assert 0.0 < ratio < 2.0
        assert -1.0 < cosine < 1.0
