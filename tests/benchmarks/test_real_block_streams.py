"""The study of real blocks: what its blocks have in common, and what not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.real_blocks import streams
from benchmarks.real_blocks.zoo import NETWORKS


def test_blocks_of_one_size_have_probes_of_their_own(tmp_path: Path) -> None:
    values = np.linspace(-1.0, 3.0, 30)
    one, other, again = (streams.in_eigenbasis(NETWORKS[0], tmp_path, name, values) for name in ("q", "v", "q"))
    np.testing.assert_array_equal(one.alphas, again.alphas)
    correlation = np.corrcoef(one.alphas[:, 0], other.alphas[:, 0])[0, 1]
    assert abs(correlation) < 0.6
