"""Stages of benchmarks/gpu_stages.py that measure kernels, run on an emulated device: with CUDA's and Triton's own."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from device_process import on_device

pytestmark = pytest.mark.usefixtures("emulated_device")

CUDA = torch.device("cuda", 0)


def rows_of(module: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
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
    kinds = Counter(row["what"].partition(",")[0] for row in found)
    kernels = {what.removeprefix("kernel ") for what in kinds if what.startswith("kernel ")}
    assert {"attention_queries", "attention_keys"} <= kernels
    for kernel in kernels:
        assert kinds[f"kernel {kernel}"] == 2  # one in each precision
        assert kinds[f"tiling of {kernel}"] == 1
    tried = [row for row in found if row["what"].startswith("tiling of")]
    assert all(row["difference"] < (0.05 if row["what"].endswith("bf16") else 1e-5) for row in tried)
    assert len({(row["what"], row["queries"], row["keys"], row["warps"], row["stages"]) for row in tried}) == len(tried)
    assert [row["what"] for row in found if "tf32x3" in row["what"]] == [
        "second, fp32 by tf32x3", "backward, fp32 by tf32x3", "forward, fp32 by tf32x3"
    ]  # fmt: skip


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
