"""Stages of benchmarks/gpu_stages.py that measure kernels, run on an emulated device: with CUDA's and Triton's own."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import pytest
import torch
from device_process import on_device

from hvp_engine.experiments.models.gpt import GPTConfig

pytestmark = pytest.mark.usefixtures("emulated_device")

CUDA = torch.device("cuda", 0)


def rows_of(module: Any) -> list[dict[str, Any]]:
    from stages import clock

    found: list[dict[str, Any]] = []
    with patch.object(clock.Clock, "has", lambda self, seconds: True):  # a loaded machine is no reason to leave out
        module.run(lambda **facts: found.append(facts), CUDA, True)
    assert [row for row in found if "error" in row] == []
    assert all(row[fact] > 0 for row in found for fact in ("ms", "gbs", "tflops") if fact in row)
    return found


@on_device
def test_attention_is_measured_kernel_by_kernel_and_with_other_tilings():
    from emulated_device import interpreted_triton

    sys.path[:0] = [f"{path}/gpu" for path in sys.path if path.endswith("benchmarks")]
    from stages import attention, tilings

    precisions = {name: attention._PRECISIONS[name] for name in ("bf16", "fp32")}
    with (
        interpreted_triton(),
        patch.object(attention, "_SMALL", (1, 1, 32, 16)),
        patch.object(attention, "_PRECISIONS", precisions),
        patch.object(tilings, "neighbours", lambda tile, own=tilings.neighbours: own(tile)[:1]),
    ):
        found = rows_of(attention)
    said = [row["what"] for row in found]
    kernels = {what.split()[1].rstrip(",") for what in said if what.startswith("kernel ") and what.endswith("bf16")}
    assert "attention_outputs" in kernels
    tried = [row for row in found if row["what"].startswith("tiling of")]
    names = {row["what"] for row in tried}
    assert {f"tiling of {name}, bf16" for name in ("attention_outputs", "attention_forward")} <= names
    assert all(row["difference"] < 0.05 for row in tried)
    assert len({(row["what"], row["queries"], row["keys"], row["warps"], row["stages"]) for row in tried}) == len(tried)
    assert "forward, fp32 by tf32x3" in said


@on_device
def test_reorthogonalisation_is_measured_by_every_backend():
    from emulated_device import interpreted_triton

    sys.path[:0] = [f"{path}/gpu" for path in sys.path if path.endswith("benchmarks")]
    from stages import lanczos_bandwidth

    with interpreted_triton():
        found = rows_of(lanczos_bandwidth)
    assert [row["what"] for row in found] == ["copy"] + [
        f"reorthogonalize, {basis} basis, {backend}" for basis in ("fp32", "bf16") for backend in ("triton", "cuda")
    ]
    assert 0 < lanczos_bandwidth._columns(CUDA) <= 4_000_000


@on_device
def test_products_are_measured_beside_those_of_others():
    import jobs
    from stages import gpt2_bf16
    from validation.compare import using

    tiny = GPTConfig(vocabulary=31, context=8, layers=1, heads=2, width=16), 2
    with using("cuda"), patch.dict(jobs.SIZES, tiny=tiny):
        said = {row["what"] for row in rows_of(gpt2_bf16)}
    for block in ("0.wq", "full", "wte", "0.c_proj"):
        assert {f"product, {block}, bf16", f"expert, product, {block}, bf16", f"rate, {block}, bf16"} <= said
    assert {"profile, 0.wq, gemm", "published way, graph and 0.wq, bf16"} <= said
