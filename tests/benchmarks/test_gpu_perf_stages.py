"""The stages of benchmarks/gpu_stages.py that measure how fast a card is, run small on the CPU."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    clock = importlib.import_module("stages.clock")
    monkeypatch.setattr(clock.Clock, "has", lambda self, seconds: True)  # a loaded machine is no reason to leave out


def rows_of(module: str) -> dict[str, dict[str, Any]]:
    """Run a stage small; its rows by what they say, each as it comes back from JSON."""
    found: list[dict[str, Any]] = []
    importlib.import_module(f"stages.{module}").run(lambda **facts: found.append(facts), CPU, True)
    rows = {row["what"]: row for row in json.loads(json.dumps(found))}
    assert len(rows) == len(found)
    for row in found:
        for fact, value in row.items():
            assert isinstance(value, (str, int, float)) or (fact == "peak_gib" and value is None), (fact, value)
            if isinstance(value, float):
                assert math.isfinite(value), row
    return rows


def positive(row: dict[str, Any], *facts: str) -> bool:
    return all(row[fact] > 0 for fact in facts)


def test_attention_is_timed_in_every_pass_and_precision_beside_what_pytorch_has():
    rows = rows_of("attention")
    assert [row for row in rows.values() if "error" in row] == []
    for precision in ("bf16", "tf32", "fp32"):
        for name in ("forward", "backward", "second"):
            assert positive(rows[f"{name}, {precision}"], "ms", "tflops", "tflops_of_kernels")
            assert positive(rows[f"math {name}, {precision}"], "ms")
        difference = rows[f"plain formula second, {precision}"]["difference"]
        assert difference < (0.05 if precision == "bf16" else 1e-5)
    assert positive(rows["flash forward, bf16"], "ms")


def test_products_of_gpt2_are_timed_block_by_block_and_divided_into_families():
    rows = rows_of("gpt2_bf16")
    assert [row for row in rows.values() if "error" in row] == []
    assert positive(rows["operator, bf16"], "s", "samples", "microbatch", "graph_gib")
    for block in ("0.wq", "full", "wte", "1.c_proj"):
        assert positive(rows[f"product, {block}, bf16"], "ms", "first_s", "kept_graphs")
        assert positive(rows[f"rate, {block}, bf16"], "tflop", "tflops")
        assert positive(rows[f"expert, product, {block}, bf16"], "ms", "samples")
    assert "ms" in rows["gradient graph, bf16"]
    assert positive(rows["published way, graph and 0.wq, bf16"], "ms", "samples")
    profile = rows["profile, 0.wq"]
    assert positive(profile, "launches", "span_ms", "busy_ms")
    assert 0 <= profile["idle_share"] < 1
    assert positive(rows["profile, 1.c_proj"], "launches", "busy_ms")
    for family in ("attention", "gemm", "head", "norm", "gelu"):
        assert positive(rows[f"profile, 0.wq, {family}"], "ms", "launches", "share")


def test_products_in_fp32_and_tf32_say_how_many_samples_they_take():
    rows = rows_of("gpt2_fp32")
    assert [row for row in rows.values() if "error" in row] == []
    for precision in ("tf32", "fp32"):
        for block in ("0.wq", "full"):
            assert positive(rows[f"product, {block}, {precision}"], "ms")
            assert rows[f"product, {block}, {precision}"]["samples"] == 1
            assert positive(rows[f"rate, {block}, {precision}"], "tflop", "tflops")
        assert positive(rows[f"expert, product, 0.wq, {precision}"], "ms")


def test_streams_are_timed_by_their_number_in_a_pass():
    rows = rows_of("streams")
    assert [row for row in rows.values() if "error" in row] == []
    for streams in (1, 2, 4, 8):
        assert positive(rows[f"streams, {streams}"], "ms_per_vector")
        assert rows[f"streams, {streams}"]["streams_at_once"] == streams
    for precision in ("bf16", "fp32"):
        for streams in (1, 10):
            assert positive(rows[f"sweep, tiny, {precision}, {streams} per block"], "ms", "ms_per_product")


def test_reorthogonalisation_is_compared_with_a_copy():
    rows = rows_of("lanczos_bandwidth")
    assert positive(rows["copy"], "gbs")
    for basis in ("fp32", "bf16"):
        assert positive(rows[f"reorthogonalize, {basis} basis, native"], "ms", "gbs", "share_of_copy")
