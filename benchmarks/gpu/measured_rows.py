"""Writes what stages measured on a card into the plans, and sets products of GPT-2 beside what is predicted.

    python benchmarks/gpu/measured_rows.py FOLDER/results.jsonl h100-80gb

FOLDER is that of `benchmarks/gpu_stages.py`. The rows go to `hvp_engine/planning/gpu.json`, whose format
`hvp_engine/planning/measured.py` describes; other devices in it stay. Rows that a stage did not reach are left out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from jobs import SIZES
from stages.gpt_products import depths

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT
from hvp_engine.planning import measured
from hvp_engine.planning.devices import GPUS, gpu

Row = Mapping[str, Any]
_GEMM = re.compile(r"product (\d+ x \d+ x \d+), (\w+)$")
_ATTENTION = re.compile(r"(forward|backward|second), (\w+)$")
_PRODUCT = re.compile(r"product, (.+), (\w+)$")
_BASIS = re.compile(r"reorthogonalize, (\w+) basis, triton$")
_PROFILE = re.compile(r"profile, ([\w.]+)$")


def collected(rows: Iterable[Row], bandwidth: float) -> dict[str, Any]:
    """Return a device's entry from the rows of all stages.

    Args:
        rows: The rows.
        bandwidth: Bytes per second of the data sheet.

    Raises:
        ValueError: The rows do not say which card it was.
    """
    entry: dict[str, Any] = {}
    profiled: dict[str, Row] = {}
    copied = 0.0
    for row in rows:
        stage, what = row["stage"], row.get("what", "")
        if what == "software":
            entry["measured_on"] = row.get("device")
        elif what == "copy" and stage == "ceilings":
            entry["copy_gbs"] = copied = row["gbs"]
        elif (found := _GEMM.match(what)) and "tflops" in row:
            entry.setdefault("gemm_tflops", {}).setdefault(found[2], {})[found[1]] = row["tflops"]
        elif stage == "attention" and (found := _ATTENTION.match(what)) and "tflops_of_kernels" in row:
            rates = entry.setdefault("attention_tflops", {}).setdefault(found[2], {})
            rates[found[1]] = row["tflops_of_kernels"]
        elif stage.startswith("gpt2") and (found := _PRODUCT.match(what)) and "ms" in row:
            times = entry.setdefault("product_ms", {}).setdefault(found[2], {})
            times[found[1]] = row["ms"] * SIZES["gpt2"][1] / row["samples"]
        elif (found := _PROFILE.match(what)) and "busy_ms" in row:
            profiled[found[1]] = row
        elif (found := _BASIS.match(what)) and copied and "share_of_copy" in row:
            family = "reorthogonalise" if found[1] == "fp32" else f"reorthogonalise {found[1]}"
            share = row["share_of_copy"] * copied * 1e9 / bandwidth
            entry.setdefault("bandwidth_share", {})[family] = share
    if not entry.get("measured_on"):
        raise ValueError("no row says which card it was; the stage `ceilings` must have run")
    _add_launches(entry, profiled)
    return entry


def _add_launches(entry: dict[str, Any], profiled: Mapping[str, Row]) -> None:
    """Take what a launch adds to the kernels' own time in the product that has the most launches."""
    times = entry.get("product_ms", {}).get("bf16", {})
    known = [(row["launches"], times[block] - row["busy_ms"]) for block, row in profiled.items() if block in times]
    launches, waited = max(known, default=(0, 0.0))
    if launches and waited > 0:
        entry["launch_us"] = dict.fromkeys(("plain", "fused"), 1e3 * waited / launches)


def compared(name: str, entry: Row, size: str = "gpt2") -> list[str]:
    """Return a table of products of a GPT, measured and predicted; by default of GPT-2."""
    config, batch = SIZES[size]
    lines = ["| product | precision | measured, ms | predicted, ms | predicted / measured |", "|---|---|---|---|---|"]
    with torch.device("meta"):
        model, data = GPT(config), [torch.zeros(batch, config.context, dtype=torch.int64)]
    every = depths(config)
    for precision, times in entry.get("product_ms", {}).items():
        blocks = {block: every[block] for block in times if block in every}
        plan = he.plan(
            model, he.losses.causal_lm, blocks, data=data, device=name, precision=precision, steps=1, probes=1,
            head_curvature=False,
        )  # fmt: skip
        for block in blocks:
            predicted = 1e3 * plan.prediction.blocks[block].seconds
            ratio = predicted / times[block]
            lines.append(f"| {block} | {precision} | {times[block]:.2f} | {predicted:.2f} | {ratio:.2f} |")
    return lines


def main(results: Path, name: str) -> None:
    """Write the entry, print the table."""
    if name not in GPUS:
        raise SystemExit(f"{name} is none of {', '.join(GPUS)}.")
    known = GPUS[name]
    entry = collected((json.loads(line) for line in results.read_text().splitlines()), known.bandwidth)
    before = json.loads(measured.PATH.read_text()) if measured.PATH.is_file() else {}
    measured.PATH.write_text(json.dumps({**before, name: entry}, indent=1, sort_keys=True) + "\n")
    print(gpu(name).efficiencies)  # refuses what the planner cannot read
    print("\n".join(compared(name, entry)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
