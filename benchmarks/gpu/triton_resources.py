"""Compile every Triton kernel ahead of time, without a GPU, and tabulate what it costs.

    python benchmarks/gpu/triton_resources.py
    python benchmarks/gpu/triton_resources.py --compile-only 80 90

The first line writes docs/gpu/triton_resources.json and .md. Each module of hvp_engine.kernels.triton declares its
variants in ``resource_cases()``; a new module needs no line here. Modules that have not changed since the table was
written are not compiled again. The second line writes nothing: it says whether the installed Triton compiles every
variant for the given compute capabilities, or all of the table's, so that it can be asked of each Triton that the
package admits. Nothing is run on a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

import hvp_engine.kernels.triton as kernels
from hvp_engine.kernels.triton.resource_case import COMPILE_OPTIONS, ResourceCase

ARCHITECTURES = (80, 90, 100)
TABLE = Path(__file__).parents[2] / "docs" / "gpu" / "triton_resources.json"
_OPCODES = ("HMMA", "HGMMA", "UTC[A-Z]*MMA", "DMMA")  # tensor core instructions of Ampere, Hopper, Blackwell; fp64
_REGISTERS_PER_SM, _WARPS_PER_SM, _BLOCKS_PER_SM = 65536, 64, 32
_SHARED_PER_SM = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}  # bytes, CUDA C++ programming guide
_SHARED_PER_BLOCK = 1 << 10  # what the system takes of each block's share


def modules() -> dict[str, ModuleType]:
    """Kernel modules by name: those that declare cases."""
    found = {info.name: importlib.import_module(f"{kernels.__name__}.{info.name}") for info in _infos()}
    return {name: module for name, module in found.items() if hasattr(module, "resource_cases")}


def _infos() -> Iterator[pkgutil.ModuleInfo]:
    return pkgutil.iter_modules(kernels.__path__)


def digest(module: ModuleType) -> str:
    """Fingerprint of a module's kernels, device functions and variants."""
    sources = [f.src for _, f in sorted(vars(module).items()) if isinstance(f, JITFunction)]
    for case in module.resource_cases():
        constexprs = {name: str(value) for name, value in case.constexprs.items()}
        sources.append(repr((case.name, case.signature, constexprs, case.num_warps, case.num_stages, case.aligned)))
        sources.extend(map(str, case.architectures or ()))
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def served(case: ResourceCase, architectures: Sequence[int]) -> list[int]:
    """Return those of the architectures that a variant is launched on."""
    return [a for a in architectures if case.architectures is None or a in case.architectures]


def compile_case(case: ResourceCase, architecture: int) -> CompiledKernel:
    """Compile one variant for one architecture, such as 90."""
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **COMPILE_OPTIONS}
    return triton.compile(_source(case), target=GPUTarget("cuda", architecture, 32), options=options)


def compile_all(architectures: Sequence[int]) -> list[str]:
    """Compile every declared variant for every architecture; return a sentence for each that fails."""
    failures = []
    for name, module in modules().items():
        cases = module.resource_cases()
        for case in cases:
            for architecture in served(case, architectures):
                try:
                    compile_case(case, architecture)
                except Exception as error:  # Triton's passes raise errors of many types
                    failures.append(f"{name}: {case.name} does not compile for sm_{architecture}: {error!r}.")
        print(f"{name}: {len(cases)} variants, {len(failures)} failures so far", flush=True)
    return failures


def measure(case: ResourceCase, architecture: int) -> dict[str, Any]:
    """Compile one variant for one architecture; return its row of the table."""
    compiled = compile_case(case, architecture)
    with tempfile.TemporaryDirectory() as folder:
        registers, spilled = _registers_and_spills(compiled.asm["ptx"], architecture, Path(folder))
        counts = _opcode_counts(compiled.asm["cubin"], Path(folder))
    shared = int(compiled.metadata.shared)
    return {
        "architecture": f"sm_{architecture}",
        "warps": case.num_warps,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": shared,
        "occupancy": round(_occupancy(architecture, case.num_warps, registers, shared), 3),
        "tensor_core_instructions": counts,
    }


def _source(case: ResourceCase) -> ASTSource:
    """Return the kernel with the types, constants and alignments of one variant, by argument or part of a tuple."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}

    def typed(name: str, kind: Any, path: tuple[int, ...]) -> Any:
        if isinstance(kind, tuple):
            return tuple(typed(name, part, (*path, i)) for i, part in enumerate(kind))
        if not isinstance(kind, str):
            constants[path] = kind
            return "constexpr"
        if name in case.aligned if case.aligned is not None else kind.startswith("*"):
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    for name, kind in case.signature.items():
        signature[name] = typed(name, kind, (case.kernel.arg_names.index(name),))
    return ASTSource(
        case.kernel,
        {**signature, **dict.fromkeys(case.constexprs, "constexpr")},
        {**case.constexprs, **constants},
        attributes,
    )


def _registers_and_spills(ptx: str, architecture: int, folder: Path) -> tuple[int, int]:
    """Return registers per thread and spilled bytes as ptxas reports them: cuobjdump does not show spills."""
    match = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert match is not None  # every PTX module names its target
    (folder / "kernel.ptx").write_text(ptx)
    command = [_ptxas(architecture), "-v", f"--gpu-name={match[1]}", folder / "kernel.ptx", "-o", os.devnull]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    used = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
    return max(used), sum(spills)


def _ptxas(architecture: int) -> str:
    """Return the assembler that Triton itself uses; before 3.6 it has one for all architectures."""
    tools = knobs.nvidia
    tool = getattr(tools, "ptxas_blackwell", tools.ptxas) if architecture >= 100 else tools.ptxas
    return str(tool.path)


def _opcode_counts(cubin: bytes, folder: Path) -> dict[str, int]:
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", folder / "kernel.cubin"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counts: dict[str, int] = {}
    for opcode in re.findall(rf"\b(?:{'|'.join(_OPCODES)})\b", text):
        counts[opcode] = counts.get(opcode, 0) + 1
    return counts


def _occupancy(architecture: int, warps: int, registers: int, shared: int) -> float:
    """Share of an SM's warps that can be resident."""
    per_warp = -(-registers * 32 // 256) * 256  # registers are handed out in units of 256 a warp
    blocks = min(
        _BLOCKS_PER_SM,
        _WARPS_PER_SM // warps,
        _REGISTERS_PER_SM // (per_warp * warps),
        _SHARED_PER_SM[architecture] // (shared + _SHARED_PER_BLOCK),
    )
    return blocks * warps / _WARPS_PER_SM


def markdown(table: dict[str, Any]) -> str:
    """Return the table for readers."""
    lines = [
        "# Resources of the Triton kernels",
        "",
        f"Compiled ahead of time by Triton {table['triton']}; times on an H100 are in "
        "`benchmarks/results/gpu_h100.md`. Occupancy is the share of an SM's",
        "warps that registers and shared memory admit. Written by `python benchmarks/gpu/triton_resources.py`; the",
        "tests fail when a kernel spills registers or this table is out of date.",
        "",
        "| module | kernel (variant) | for | warps | registers | spilled B | shared B | occupancy | tensor cores |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for module, entry in table["modules"].items():
        for name, rows in entry["cases"].items():
            for row in rows:
                cores = ", ".join(f"{count} {op}" for op, count in row["tensor_core_instructions"].items()) or "-"
                lines.append(
                    f"| {module} | {name} | {row['architecture']} | {row['warps']} | {row['registers']} "
                    f"| {row['spilled_bytes']} | {row['shared_bytes']} | {row['occupancy']:.0%} | {cores} |"
                )
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Compile what has changed and write both files."""
    before = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    known = before["modules"] if before.get("triton") == triton.__version__ else {}
    table: dict[str, Any] = {"triton": triton.__version__, "modules": {}}
    for name, module in modules().items():
        entry = known.get(name)
        if entry is None or entry["digest"] != digest(module):
            cases = {
                case.name: [measure(case, arch) for arch in served(case, ARCHITECTURES)]
                for case in module.resource_cases()
            }
            entry = {"digest": digest(module), "cases": cases}
            print(f"{name}: {len(cases)} variants compiled", flush=True)
        table["modules"][name] = entry
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    TABLE.with_suffix(".md").write_text(markdown(table))


def main() -> None:
    """Write the table, or only compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--compile-only",
        nargs="*",
        type=int,
        metavar="CAPABILITY",
        help="write nothing; all of the table's, or e.g. 80 90",
    )
    architectures = parser.parse_args().compile_only
    if architectures is None:
        write_table()
        return
    failures = compile_all(architectures or ARCHITECTURES)
    print("\n".join([f"Triton {triton.__version__}: {len(failures)} failures", *failures]))
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
