"""The committed table of registers and spills: no kernel spills, and the compiler still says what the table says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
TABLE = json.loads((GPU.parents[1] / "docs" / "gpu" / "cuda_resources.json").read_text())
KERNELS = {"project<fp32, fp32>", "project<bf16, fp32>", "finish_pass", "decide_step", "scale_vectors", "quadrature"}
# Another release of nvcc allocates registers differently; that is no fault of the kernels.
DRIFT_OF_OTHER_RELEASES = 16


@pytest.fixture(scope="module")
def cuda_resources():
    sys.path.insert(0, str(GPU))
    try:
        import cuda_resources

        yield cuda_resources
    finally:
        sys.path.remove(str(GPU))


@pytest.mark.parametrize("architecture", ["sm_70", "sm_75", "sm_80", "sm_90", "sm_100"])
def test_the_committed_table_has_every_kernel_and_no_spill(architecture):
    kernels = TABLE["kernels"][architecture]
    assert set(kernels) >= KERNELS
    assert {name for name, n in kernels.items() if n["spill_stores"] or n["spill_loads"]} == set()


def known_to_nvcc() -> list[int]:
    """Of the table's architectures, those that this release compiles for: 12 has sm_70, 12.4 no sm_100 yet."""
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return [architecture for architecture in (70, 75, 80, 90, 100) if f"compute_{architecture}" in listed]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("architecture", known_to_nvcc() if shutil.which("nvcc") else [])
def test_the_compiler_agrees_with_the_committed_table(cuda_resources, architecture):
    committed = TABLE["kernels"][f"sm_{architecture}"]
    same = TABLE["compilers"][f"sm_{architecture}"] == f"nvcc {cuda_resources.nvcc_release()}"
    found = cuda_resources.compile_with_nvcc(architecture)
    assert set(found) == set(committed)
    for name, numbers in found.items():
        assert numbers["spill_stores"] == numbers["spill_loads"] == 0, f"{name} spills on sm_{architecture}"
        drift = abs(numbers["registers"] - committed[name]["registers"])
        assert drift <= (0 if same else DRIFT_OF_OTHER_RELEASES), f"{name} uses {numbers['registers']} registers"


def test_a_spill_is_read_from_the_compiler_log(cuda_resources):
    log = (
        "ptxas info    : Compiling entry function "
        "'_ZN3hvp4cuda7projectINS_4Bf16EdEEvNS0_15ProjectionBatchE' for 'sm_90'\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 80 registers, used 1 barriers, 64 bytes smem, 448 bytes cmem[0]\n"
    )
    assert cuda_resources.parse_ptxas(log) == {
        "project<bf16, fp64>": {
            "registers": 80,
            "spill_stores": 4,
            "spill_loads": 12,
            "stack": 8,
            "static_shared": 64,
        }
    }
