"""What every CUDA kernel costs, from the compiler alone: no GPU is needed, and nothing here is measured.

    python benchmarks/gpu/cuda_resources.py [--nvrtc SITE_PACKAGES]

compiles csrc/cuda for sm_75, 80, 90 and 100 with nvcc 13 and, with --nvrtc, for sm_70 with NVRTC 12.9 (nvcc 13 no
longer knows it), and writes docs/gpu/cuda_resources.json and .md. For NVRTC, in a virtual environment of its own:

    pip install -r benchmarks/gpu/requirements-nvrtc.txt
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import roofline

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
TABLE = ROOT / "docs" / "gpu" / "cuda_resources.json"
SOURCES = ("reorthogonalize.cu", "lanczos_step.cu", "tridiagonal.cu")
NVCC_ARCHITECTURES = (75, 80, 90, 100)
TYPES = {"f": "fp32", "d": "fp64", "b": "bf16"}

# The kernels without their launchers, for a compiler that has no host headers.
NVRTC_SOURCE = """
#include "reorthogonalize_decide.cuh"
#include "lanczos_step_kernels.cuh"
#include "tridiagonal_kernels.cuh"
namespace hvp { namespace cuda {
template __global__ void project<float, float>(ProjectionBatch, int, std::int64_t);
template __global__ void project<float, double>(ProjectionBatch, int, std::int64_t);
template __global__ void project<Bf16, float>(ProjectionBatch, int, std::int64_t);
template __global__ void project<Bf16, double>(ProjectionBatch, int, std::int64_t);
template __global__ void project<double, float>(ProjectionBatch, int, std::int64_t);
template __global__ void project<double, double>(ProjectionBatch, int, std::int64_t);
}}
"""
HOST_HEADERS = {
    "cstdint": """
namespace std {
using int8_t = signed char; using int64_t = long;
using uint16_t = unsigned short; using uint32_t = unsigned; using uint64_t = unsigned long;
using uintptr_t = unsigned long;
}
""",
    "type_traits": """
namespace std {
template <typename A, typename B> inline constexpr bool is_same_v = false;
template <typename A> inline constexpr bool is_same_v<A, A> = true;
}
""",
}


def kernel_name(mangled: str) -> str:
    """Turn _ZN3hvp4cuda7projectIffEEv... into project<fp32, fp32>."""
    length, rest = re.match(r"_ZN3hvp4cuda(\d+)(.*)", mangled).groups()
    name, rest = rest[: int(length)], rest[int(length) :]
    types = re.match(r"I((?:f|d|NS_4Bf16E)+)E", rest)
    if types is None:
        return name
    names = [TYPES[t] for t in types[1].replace("NS_4Bf16E", "b")]
    return f"{name}<{', '.join(names)}>"


def parse_ptxas(log: str) -> dict[str, dict[str, int]]:
    """Read what `ptxas -v` says about each kernel."""
    kernels: dict[str, dict[str, int]] = {}
    for piece in re.split(r"Compiling entry function '", log)[1:]:
        numbers = {}
        for key, pattern in (
            ("registers", r"Used (\d+) registers"),
            ("spill_stores", r"(\d+) bytes spill stores"),
            ("spill_loads", r"(\d+) bytes spill loads"),
            ("stack", r"(\d+) bytes stack frame"),
            ("static_shared", r"(\d+) bytes smem"),
        ):
            found = re.search(pattern, piece)
            numbers[key] = int(found[1]) if found else 0
        kernels[kernel_name(piece.split("'")[0])] = numbers
    return kernels


def nvcc_release() -> str:
    """Return the release of the nvcc on the path, such as 13.0.88."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text)[1]


def compile_with_nvcc(architecture: int) -> dict[str, dict[str, int]]:
    """Compile all sources for one architecture; return the kernels' resources."""

    def compile_one(source: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            command = ["nvcc", "-std=c++17", "-O3", "-DNDEBUG", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin"]
            command += [f"-I{ROOT / 'csrc' / 'include'}", str(CUDA / source), "-o", str(Path(folder) / "out.cubin")]
            return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    with ThreadPoolExecutor(2) as pool:
        return parse_ptxas("".join(pool.map(compile_one, SOURCES)))


def compile_with_nvrtc(site_packages: Path, architecture: int) -> tuple[str, dict[str, dict[str, int]]]:
    """Compile the device code with the NVRTC of a wheel; return its release and the kernels' resources."""
    libraries = site_packages / "nvidia" / "cuda_nvrtc" / "lib"
    ctypes.CDLL(str(next(libraries.glob("libnvrtc-builtins.so*"))), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(next(libraries.glob("libnvrtc.so*"))))
    major, minor, program, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    count = len(HOST_HEADERS)
    headers = (ctypes.c_char_p * count)(*(text.encode() for text in HOST_HEADERS.values()))
    names = (ctypes.c_char_p * count)(*(name.encode() for name in HOST_HEADERS))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), NVRTC_SOURCE.encode(), b"kernels.cu", count, headers, names)
    options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v"]
    options += ["--device-as-default-execution-space"]  # the declarations of launchers are never called
    options += [f"-I{ROOT / 'csrc' / 'include'}", f"-I{CUDA}"]
    given = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != 0:
        raise SystemExit(log.value.decode())
    return f"{major.value}.{minor.value}", parse_ptxas(log.value.decode())


def measure(nvrtc: Path | None) -> dict:
    """Compile everything, and add the occupancy."""
    compilers = {f"sm_{a}": f"nvcc {nvcc_release()}" for a in NVCC_ARCHITECTURES}
    kernels = {f"sm_{a}": compile_with_nvcc(a) for a in NVCC_ARCHITECTURES}
    if nvrtc is not None:
        release, found = compile_with_nvrtc(nvrtc, 70)
        compilers = {"sm_70": f"NVRTC {release}", **compilers}
        kernels = {"sm_70": found, **kernels}
    for architecture, found in kernels.items():
        for name, numbers in found.items():
            numbers.update(roofline.occupancy(architecture, name, numbers))
    return {"compilers": compilers, "kernels": kernels, "work": roofline.predictions()}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvrtc", type=Path, help="site-packages folder that holds nvidia/cuda_nvrtc")
    found = measure(parser.parse_args().nvrtc)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps(found, indent=1) + "\n")
    TABLE.with_suffix(".md").write_text(roofline.markdown(found))
    spilling = [(a, n) for a, k in found["kernels"].items() for n, v in k.items() if v["spill_stores"]]
    print(f"wrote {TABLE}; kernels that spill: {spilling or 'none'}")


if __name__ == "__main__":
    main()
