"""Rows of stages become the numbers that plans start from."""

import json
from pathlib import Path

import pytest

from hvp_engine.planning import measured
from hvp_engine.planning.devices import gpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS = [
    {"stage": "ceilings", "what": "software", "device": "NVIDIA H100 80GB HBM3 (79 GiB, sm_90, 132 multiprocessors)"},
    {"stage": "ceilings", "what": "copy", "gbs": 2680.0},
    {"stage": "ceilings", "what": "product 8192 x 8192 x 8192, bf16", "tflops": 693.0},
    {"stage": "ceilings", "what": "product 8192 x 768 x 768, bf16", "tflops": 396.0},
    {"stage": "ceilings", "what": "product 8192 x 768 x 768, tf32", "error": "out of memory"},
    {"stage": "attention", "what": "second, bf16", "ms": 1.5, "tflops": 100.0, "tflops_of_kernels": 198.0},
    {"stage": "attention", "what": "kernel attention_keys, bf16", "ms": 0.5},
    {"stage": "lanczos bandwidth", "what": "reorthogonalize, bf16 basis, triton", "share_of_copy": 0.5},
    {"stage": "lanczos bandwidth", "what": "reorthogonalize, bf16 basis, cuda", "share_of_copy": 0.1},
    {"stage": "gpt2 bf16", "what": "product, 0.wq, bf16", "ms": 15.0, "samples": 4},
    {"stage": "gpt2 bf16", "what": "profile, 0.wq", "launches": 500, "busy_ms": 5.5},
    {"stage": "gpt2 bf16", "what": "expert, product, 0.wq, bf16", "ms": 60.0},
    {"stage": "gpt2 bf16", "end": True, "ok": True},
]


@pytest.fixture
def measured_rows(monkeypatch):
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    import measured_rows

    return measured_rows


def test_rows_replace_the_estimates_and_stand_beside_what_is_predicted(measured_rows, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(measured, "PATH", tmp_path / "gpu.json")
    measured.PATH.write_text(json.dumps({"a100-80gb": {"measured_on": "an A100"}}))
    monkeypatch.setitem(measured_rows.SIZES, "gpt2", measured_rows.SIZES["tiny"])
    measured_rows.main(results, "h100-80gb")
    assert gpu("a100-80gb").efficiencies.source == "measured on an A100"
    found = gpu("h100-80gb").efficiencies
    assert found.source.startswith("measured on NVIDIA H100")
    assert found.of_product("linear", "bf16") == pytest.approx(0.4)
    assert found.of_product("head", "bf16") == pytest.approx(0.7)
    assert found.of_product("attention second", "bf16") == pytest.approx(0.2)
    assert found.of_bandwidth("reorthogonalise bf16") == pytest.approx(0.4)
    assert found.of_bandwidth("elementwise") == pytest.approx(0.8)
    assert (found.plain_launch, found.fused_launch) == pytest.approx((4e-6, 4e-6))
    samples = measured_rows.SIZES["tiny"][1]
    assert f"| 0.wq | bf16 | {15.0 * samples / 4:.2f} |" in capsys.readouterr().out


def test_rows_of_an_unknown_card_are_refused(measured_rows):
    with pytest.raises(ValueError, match="which card it was"):
        measured_rows.collected(ROWS[1:], 3.35e12)
