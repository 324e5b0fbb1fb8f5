"""The tuner of attention's kernels compiles its candidates without a GPU and reports those that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

import tune_attention
from attention_candidates import CASES, Case

from hvp_engine.kernels.triton.attention_tiling import Tiling

SMALL = Case("bf16", heads=1, width=16, batch=1, length=32)


@pytest.fixture(autouse=True)
def own_cache_and_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", driver._active)  # is put back


def compiled(tile):
    return tune_attention.compile_variants(SMALL, "second", {"attention_keys": tile}, "attention_keys", 90)


def test_a_candidate_is_compiled_alone():
    assert compiled(Tiling(16, 16, 16, 16, 4, 1)).keys() == {"compile_s"}


def test_a_candidate_that_does_not_compile_is_reported():
    assert "error" in compiled(Tiling(16, 24, 16, 16, 4, 1))


def test_every_case_has_candidates_for_every_kernel():
    assert all(set(tune_attention.kernel_names(case)) == set(tune_attention.KERNELS) for case in CASES)
