"""Checks every GPU path against fp64 on the CPU, times every kernel against its roofline, and ends in a short table.

    python benchmarks/gpu_validate.py [--out RESULT.md | --out RESULT.json]

Takes less than ten minutes on one card, most of it spent by Triton's compiler. Exit code 0: all checks passed; 1: one
failed; 2: there is no CUDA device. Nothing in the report names the machine or its users.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "gpu")]

import results  # noqa: E402
from validation import kernels, operations, products, timings  # noqa: E402
from validation.report import Check, Report  # noqa: E402

from hvp_engine.config import show_config  # noqa: E402
from hvp_engine.kernels import loader  # noqa: E402
from hvp_engine.kernels.registry import available_backends, families_of  # noqa: E402

NO_GPU = (
    "gpu_validate: torch finds no CUDA device here, so nothing was checked; run it on a machine with an NVIDIA GPU and "
    "a CUDA build of torch (benchmarks/README.md says which)."
)
_LANCZOS = {"reorthogonalize", "lanczos_step", "tridiagonal"}  # the families that are no operations of a model


def dtypes_of(device: torch.device) -> dict[str, torch.dtype]:
    """Return the dtypes in which operations are checked; bf16 where the device has its arithmetic."""
    found = {"fp32": torch.float32}
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        found["bf16"] = torch.bfloat16
    return found


def run(device: torch.device, small: bool = False, backends: Sequence[str] | None = None) -> Report:
    """Check a device, and time it.

    Args:
        device: Where the kernels run; the CPU serves to prove this script.
        small: Sizes that take seconds on a CPU.
        backends: Those to check; by default all that the device has besides plain PyTorch.
    """
    began = time.perf_counter()
    there = available_backends(device)
    backends = [name for name in there if name != "torch"] if backends is None else list(backends)
    report = Report(
        {**results.machine(device), "backends": f"{', '.join(there)} (checked: {', '.join(backends) or 'none'})"}
    )
    if device.type == "cuda":
        report.facts["CUDA kernels"] = loader.cuda_missing_reason() or "available"
        torch.cuda.set_device(device)
    if not backends:
        missing = loader.cuda_missing_reason() or "every backend was left out"
        report.checks.append(Check("there are no kernels to check", 1, 0, missing))
    dtypes = dtypes_of(device)
    for backend in backends:
        _check(report, device, backend, dtypes, small)
    top = timings.ceilings(device, small)
    report.facts["measured copy bandwidth"] = f"{top.bandwidth / 1e9:.0f} GB/s"
    for backend in backends:
        _time(report, device, backend, top, dtypes, small)
    report.facts["seconds taken"] = round(time.perf_counter() - began)
    return report


def _has_quadrature(backend: str) -> bool:
    return backend == "torch" or "tridiagonal" in families_of(backend)


def _has_operations(backend: str) -> bool:
    """Say whether a backend has kernels of any operation; what it has not takes plain PyTorch in the same check."""
    return backend == "torch" or not families_of(backend) <= _LANCZOS


def _check(report: Report, device: torch.device, backend: str, dtypes: dict[str, torch.dtype], small: bool) -> None:
    families = {
        "reorthogonalize": partial(kernels.check_reorthogonalize, device, backend, small),
        "record step": partial(kernels.check_record_step, device, backend, small),
        "hvp": partial(products.check_hvp, device, backend, ("fp64", *dtypes)),
        "slq": partial(products.check_slq, device, backend),
        "waits": partial(products.check_no_wait, device, backend),
    }
    if _has_quadrature(backend):
        families["quadrature"] = partial(kernels.check_quadrature, device, backend, small)
    if _has_operations(backend):
        families["operations"] = partial(operations.check_operations, device, backend, dtypes, small)
    for name, checks in families.items():
        report.run_checks(f"{backend} {name}", checks)


def _time(
    report: Report,
    device: torch.device,
    backend: str,
    top: timings.roofline.Device,
    dtypes: dict[str, torch.dtype],
    small: bool,
) -> None:
    families = {
        "Lanczos kernels": partial(timings.time_lanczos, device, backend, top, small),
        "sweep": partial(timings.time_sweep, device, backend, small),
    }
    if _has_quadrature(backend):
        families["quadrature"] = partial(timings.time_quadrature, device, backend, top, small)
    if _has_operations(backend):
        families["operations"] = partial(timings.time_operations, device, backend, top, small)
        families["attention"] = partial(timings.time_attention, device, backend, top, dtypes, small)
    for name, measured in families.items():
        report.run_timings(f"{backend} {name}", measured)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything on the first CUDA device; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the report here, as JSON where the name ends in .json")
    out: Path | None = parser.parse_args(arguments).out
    if out is not None and not out.parent.is_dir():
        parser.error(f"--out {out}: there is no folder {out.parent}")
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    show_config()
    report = run(torch.device("cuda", torch.cuda.current_device()))
    print(report.markdown())
    if out is not None:
        report.write(out)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
