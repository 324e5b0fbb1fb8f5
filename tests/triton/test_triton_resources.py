"""Every Triton kernel compiles for GPUs without spilling registers, and the committed table is up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import triton
import triton.language as tl

from hvp_engine.kernels.triton.resource_case import ResourceCase

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

import triton_resources as resources

MODULES = resources.modules()
COMMITTED = json.loads(resources.TABLE.read_text())["modules"]
REMEDY = "run python benchmarks/gpu/triton_resources.py and commit docs/gpu"


@triton.jit
def hungry(source, target, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Holds DEPTH * BLOCK / 32 numbers in the registers of one warp's lanes."""
    at = tl.arange(0, BLOCK)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
    values = tl.load(source + at)
    tl.store(target + at, values * tl.sum(values))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_committed_table_has_every_variant_and_no_spills(name):
    assert name in COMMITTED, REMEDY
    assert COMMITTED[name]["digest"] == resources.digest(MODULES[name]), f"the kernels of {name} changed: {REMEDY}"
    cases = {case.name: case for case in MODULES[name].resource_cases()}
    assert COMMITTED[name]["cases"].keys() == cases.keys(), REMEDY
    for key, case in cases.items():
        rows = COMMITTED[name]["cases"][key]
        assert [row["architecture"] for row in rows] == [f"sm_{a}" for a in resources.ARCHITECTURES]
        assert all(row["spilled_bytes"] <= case.max_spill_bytes for row in rows)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_largest_variant_of_each_kernel_compiles_without_spills(name):
    largest: dict[str, tuple[int, ResourceCase]] = {}
    for case in MODULES[name].resource_cases():
        registers = COMMITTED[name]["cases"][case.name][0]["registers"]
        kernel = case.kernel.__name__
        largest[kernel] = max(largest.get(kernel, (0, case)), (registers, case), key=lambda pair: pair[0])
    for _, case in largest.values():
        assert resources.measure(case, 80)["spilled_bytes"] <= case.max_spill_bytes, case.name


def test_a_kernel_that_spills_is_noticed():
    case = ResourceCase(
        hungry, "one warp", {"source": "*fp32", "target": "*fp32"}, {"BLOCK": 128, "DEPTH": 128}, num_warps=1
    )
    assert resources.measure(case, 80)["spilled_bytes"] > 0
