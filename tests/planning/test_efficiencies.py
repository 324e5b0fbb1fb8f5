"""What operations reach of a device: estimates, what a measured run puts in their place, and the host's part."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.planning import measured
from hvp_engine.planning.devices import GPUS, gpu, measure_cpu
from hvp_engine.planning.meter import Operation, Work
from hvp_engine.planning.parts import operations

ROWS = {
    "h100-80gb": {
        "measured_on": "NVIDIA H100 80GB HBM3",
        "copy_gbs": 3015.0,
        "gemm_tflops": {"bf16": {"8192 x 8192 x 8192": 693, "8192 x 768 x 768": 400, "8192 x 768 x 3072": 600}},
        "attention_tflops": {"bf16": {"forward": 330, "backward": 264, "second": 198}},
        "launch_us": {"plain": 6.0, "fused": 30.0},
        "bandwidth_share": {"norm": 0.6, "reorthogonalise bf16": 0.7},
        "product_ms": {"bf16": {"0.wq": 31.0}},
    }
}


@pytest.fixture
def measured_h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(ROWS))
    monkeypatch.setattr(measured, "PATH", path)
    return path


def test_what_was_measured_takes_the_place_of_estimates(measured_h100: Path) -> None:
    device = gpu("h100-80gb")
    found, before = device.efficiencies, GPUS["h100-80gb"].efficiencies
    assert found.source == "measured on NVIDIA H100 80GB HBM3" and before.source == "predicted"
    assert found.of_product("linear", "bf16") == pytest.approx(480 / 990)  # the harmonic mean of the smaller products
    assert found.of_product("head", "bf16") == pytest.approx(0.7)
    assert found.of_product("attention second", "bf16") == pytest.approx(0.2)
    assert found.of_product("attention second", "tf32") == before.of_product("attention second", "tf32")
    assert found.of_product("linear", "fp32") == before.of_product("linear", "fp32")
    assert found.of_bandwidth("elementwise") == pytest.approx(0.9)
    assert found.of_bandwidth("norm") == 0.6
    assert found.of_bandwidth("activation") == before.of_bandwidth("activation")
    assert found.of_bandwidth("reorthogonalise fp32", "reorthogonalise") == before.of_bandwidth("reorthogonalise")
    assert found.host("linear", 1) == pytest.approx(6e-6)
    assert found.host("attention second", 3) == pytest.approx(90e-6)


def test_every_device_keeps_its_own_numbers_and_a_plan_says_whose_they_are(measured_h100: Path) -> None:
    model, data = nn.Linear(4, 3), [(torch.randn(5, 4), torch.randint(0, 3, (5,)))]
    asked = {"loss": he.losses.classification, "data": data, "precision": "bf16"}
    plans = {name: he.plan(model, device=name, **asked) for name in ("h100-80gb", "a100-80gb")}
    assert "efficiencies measured on NVIDIA H100 80GB HBM3" in plans["h100-80gb"].summary()
    assert "efficiencies predicted" in plans["a100-80gb"].summary()
    assert plans["h100-80gb"].record()["ceilings"]["efficiencies"]["source"].startswith("measured on")
    assert gpu("a100-80gb") == GPUS["a100-80gb"]


def test_without_a_file_plans_start_from_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PATH", tmp_path / "gpu.json")
    assert gpu("h100-80gb") == GPUS["h100-80gb"]


@pytest.mark.parametrize(
    "damage", ["{", '{"h100-80gb": {"copy_gbs": 1.0}}', '{"h100-80gb": {"measured_on": "x", "ms": 1}}']
)
def test_a_damaged_file_is_refused_with_its_path(damage: str, measured_h100: Path) -> None:
    measured_h100.write_text(damage)
    with pytest.raises(ConfigurationError, match=r"gpu\.json does not hold .* remove it: plans then start"):
        gpu("h100-80gb")
    measured_h100.unlink()
    assert gpu("h100-80gb") == GPUS["h100-80gb"]


def test_the_file_that_is_part_of_the_package_can_be_read() -> None:
    for name in GPUS:
        assert 0 < gpu(name).efficiencies.of_product("linear", "fp32") <= 1


def test_a_product_takes_at_least_what_the_host_takes_to_start_it() -> None:
    device = GPUS["h100-80gb"]
    small, large = Operation(1e6, 1e4, "linear"), Operation(1e13, 1e9, "linear")
    few = operations(Work(Counter({small: 500, Operation(1e6, 1e4, "attention second", 3): 10})), device, "bf16")
    assert few.limit == "launch"
    assert few.seconds == pytest.approx(500 * device.efficiencies.plain_launch + 30 * device.efficiencies.fused_launch)
    # Long kernels hide the launches of short ones.
    many = operations(Work(Counter({small: 500, large: 1})), device, "bf16")
    assert many.limit == "compute"
    assert many.seconds == pytest.approx(1e13 / (990e12 * 0.57), rel=0.01)
    shared = operations(Work(Counter({small: 500})), device, "bf16", streams=4)
    assert shared.seconds == pytest.approx(500 * device.efficiencies.plain_launch / 4)


def test_on_a_cpu_every_operation_waits_for_its_own_start() -> None:
    device = measure_cpu("fp32")
    small, large = Operation(1.0, 1.0, "elementwise"), Operation(1e12, 1e9, "linear")
    alone = operations(Work(Counter({large: 1})), device, "fp32").seconds
    both = operations(Work(Counter({large: 1, small: 1000})), device, "fp32").seconds
    assert both == pytest.approx(alone + 1000 * device.efficiencies.plain_launch)


def test_gpus_without_kernels_of_attention_are_planned_with_pytorchs() -> None:
    assert GPUS["v100-32gb"].backends("fp32") == (None, False)
    assert GPUS["a100-80gb"].backends("fp64") == (None, True)
    assert GPUS["a100-80gb"].backends("bf16") == ("triton", True)
