"""What a stage launches on a card is found without one, and compiles for sm_80 and sm_90."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

import cache_archive
import gpu_warm
from compile_only import compile_launch, recorded

# What a product with a transformer's block launches at least, by the modules of the kernels.
FAMILIES = {"activations", "attention_forward", "cross_entropy", "normalize"}


@pytest.fixture
def follow(monkeypatch):
    if torch.backends.cuda.is_built():
        pytest.skip("the card that is followed is emulated, which takes a CPU build of PyTorch")
    paths = [str(Path(__file__).parent), *sys.path, os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return gpu_warm.follow_elsewhere


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_launch_of_a_stage_compiles(architecture, follow):
    launches, rows, error = follow("small_stage", architecture, True)
    assert error == ""
    assert [row["what"] for row in rows] == ["fp32", "bf16"]
    assert {launch.kernel.module.rpartition(".")[2] for launch in launches} >= FAMILIES
    assert [done.error for done in map(compile_launch, launches) if done.error] == []


def test_a_stage_that_ends_early_or_launches_nothing_is_an_error(tmp_path, monkeypatch, capsys):
    def record(found):
        monkeypatch.setattr(gpu_warm, "follow_elsewhere", lambda module, architecture, small: found)
        return gpu_warm.main(["record", str(tmp_path / "launches"), "--only", "ceilings"])

    assert record(([], [{"what": "begun"}], "KeyError: its own mistake")) == 1
    assert "ceilings: 0 variants, 1 rows: KeyError: its own mistake" in capsys.readouterr().out
    assert record(([], [], "")) == 1


@triton.jit
def broken(x, COUNT: tl.constexpr):
    """Counts to what is no power of two."""
    tl.store(x + tl.arange(0, COUNT), 0.0)


def test_a_kernel_that_does_not_compile_is_an_error(tmp_path, capsys):
    with recorded(90) as launches:
        broken[(1,)](torch.empty(8), COUNT=3)
    (tmp_path / "launches").write_bytes(pickle.dumps(launches))
    assert gpu_warm.main(["compile", str(tmp_path / "launches"), "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "broken does not compile for sm_90: CompilationError" in said
    assert "1 failures" in said


@triton.jit
def copy(source, target, COUNT: tl.constexpr):
    """Small enough to be compiled often."""
    at = tl.arange(0, COUNT)
    tl.store(target + at, tl.load(source + at))


@pytest.fixture
def recorded_copy(tmp_path):
    x = torch.empty(16)
    with recorded(90) as launches:
        for _ in range(2):
            copy[(1,)](x, x, COUNT=16)
    (tmp_path / "launches").write_bytes(pickle.dumps(launches))
    return tmp_path / "launches"


def test_variants_are_compiled_once_and_found_in_a_cache_that_was_packed_and_moved(
    recorded_copy, tmp_path, monkeypatch, capsys
):
    def counts(cache):
        assert gpu_warm.main(["compile", str(recorded_copy), "--cache", str(cache), "--jobs", "1"]) == 0
        return capsys.readouterr().out

    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # put back after the test, which sets it
    first, moved = tmp_path / "first", tmp_path / "moved" / "deeper"
    assert "1 variants of 1 kernels, 0 from the cache, 0 failures" in counts(first)
    cache_archive.main(["pack", str(first), str(tmp_path / "cache.tar.xz")])
    shutil.rmtree(first)
    cache_archive.main(["unpack", str(tmp_path / "cache.tar.xz"), str(moved)])
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*.so")}
    assert "1 variants of 1 kernels, 1 from the cache, 0 failures" in counts(moved)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.so")} == before, "a launcher was built again"
    assert list(moved.rglob("*.ttir")) == []
