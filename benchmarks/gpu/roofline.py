"""Occupancy and roofline arithmetic for the CUDA kernels: datasheet ceilings, bytes and FLOP of a reference job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Streams in flight, Lanczos vectors of each and their length; tridiagonal matrices and their size."""

    streams: int = 25
    rows: int = 100
    columns: int = 7_000_000
    matrices: int = 1000
    steps: int = 100


REFERENCE = Sizes()  # the job of the committed tables
_ROTATIONS = 0.9  # per squared step: about 1.8 sweeps per eigenvalue over half of the matrix on average
_FLOP_PER_ROTATION = 20

_BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}
_WARPS, _TILE_BYTES, _TASK_COLUMNS = 8, 512, 4096


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor holds."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory, per block


_LIMITS = {
    "sm_70": Limits(64, 32, 96 << 10, 0),
    "sm_75": Limits(32, 16, 64 << 10, 0),
    "sm_80": Limits(64, 32, 164 << 10, 1 << 10),
    "sm_90": Limits(64, 32, 228 << 10, 1 << 10),
    "sm_100": Limits(64, 32, 228 << 10, 1 << 10),
}


@dataclass(frozen=True)
class Device:
    """Datasheet ceilings, per second. Conversions are those between fp32 and fp64: 16 per clock and multiprocessor."""

    name: str
    bandwidth: float
    fp32: float
    fp64: float
    conversions: float


DEVICES = (
    Device("V100", 0.9e12, 15.7e12, 7.8e12, 16 * 80 * 1.53e9),
    Device("A100-80GB", 2.0e12, 19.5e12, 9.7e12, 16 * 108 * 1.41e9),
    Device("H100-80GB", 3.35e12, 67e12, 34e12, 16 * 132 * 1.83e9),
)

_FOUND = 5  # doubles that a warp knows of the dots, in finish_pass


@dataclass(frozen=True)
class Work:
    """What one launch moves and computes."""

    launch: str
    bytes: float
    fp32_flop: float
    fp64_flop: float
    conversions: float


def dynamic_shared_bytes(kernel: str) -> int:
    """Return the shared memory of a block at 100 rows (shared_doubles in reorthogonalize_kernels.cuh)."""
    if not kernel.startswith("project"):
        return 8 * _FOUND * _WARPS if kernel == "finish_pass" else 0
    columns, vectors = _TILE_BYTES // _BYTES[kernel[8:12]], 1 + (kernel[8:12] == kernel[14:18])
    return 8 * (vectors * REFERENCE.rows + _WARPS + _WARPS * (columns + 32))


def occupancy(architecture: str, kernel: str, numbers: dict[str, int]) -> dict[str, int]:
    """Compute the warps that are resident on a multiprocessor, in percent of its most."""
    limits = _LIMITS[architecture]
    warps = {"quadrature": 1, "clear_failed": 1}.get(kernel, _WARPS)
    per_warp = -(-numbers["registers"] * 32 // 256) * 256
    dynamic = dynamic_shared_bytes(kernel)
    shared = numbers["static_shared"] + dynamic + limits.reserved_bytes
    blocks = min(limits.warps // warps, limits.blocks, 65536 // (per_warp * warps))
    if shared > 0:
        blocks = min(blocks, limits.shared_bytes // shared)
    return {"dynamic_shared": dynamic, "occupancy_percent": round(100 * blocks * warps / limits.warps)}


def passes(basis: str, sizes: Sizes) -> list[Work]:
    """Return the three launches of one reorthogonalisation of fp32 vectors, all streams together."""
    vector = sizes.streams * sizes.columns
    elements = vector * sizes.rows
    read = elements * _BYTES[basis]
    narrow = basis == "bf16"  # products in fp32, whose sums over 8 columns or 4 rows are then widened

    def work(name: str, vector_bytes: int, dots: int, updates: int) -> Work:
        flop = 2.0 * elements * (dots + updates)
        widened = elements * (dots / 8 + updates / 4) if narrow else elements * (dots + updates)
        return Work(name, read + vector * vector_bytes, flop * narrow, flop * (not narrow), widened)

    return [
        work(f"dots ({basis} basis)", 4, 1, 0),
        work(f"update and dots ({basis} basis)", 8, 1, 1),
        work(f"update ({basis} basis)", 8, 0, 1),
    ]


def sums(sizes: Sizes) -> Work:
    """Return the launch that adds the tasks' sums after each pass."""
    tasks = sizes.streams * -(-sizes.columns // _TASK_COLUMNS)
    return Work("sums of all tasks (one pass)", tasks * (sizes.rows + 1) * 8.0, 0, tasks * (sizes.rows + 1.0), 0)


def record(basis: str, sizes: Sizes) -> Work:
    """Return the launch that writes the next vectors: fp32 read, the basis written, and a window beside a bf16 one."""
    vector = float(sizes.streams * sizes.columns)
    name = {"fp32": "record step (fp32 basis)", "bf16": "record step (bf16 basis and fp32 window)"}[basis]
    return Work(name, vector * {"fp32": 8, "bf16": 10}[basis], 0, vector, 2 * vector)


def quadrature(sizes: Sizes) -> Work:
    """Return the launch that diagonalises all tridiagonal matrices."""
    rotations = sizes.matrices * _ROTATIONS * sizes.steps**2
    return Work("quadrature", sizes.matrices * sizes.steps * 8.0 * 4, 0, rotations * _FLOP_PER_ROTATION, 0)


def work(sizes: Sizes = REFERENCE) -> list[Work]:
    """All launches of a job."""
    return [
        *passes("fp32", sizes),
        *passes("bf16", sizes),
        sums(sizes),
        record("fp32", sizes),
        record("bf16", sizes),
        quadrature(sizes),
    ]


def bound(w: Work, device: Device) -> tuple[float, str]:
    """Return the seconds of a launch at the device's ceilings, and the ceiling that it touches."""
    times = {
        "memory": w.bytes / device.bandwidth,
        "fp32": w.fp32_flop / device.fp32,
        "fp64": w.fp64_flop / device.fp64,
        "conversions": w.conversions / device.conversions,
    }
    limit = max(times, key=times.get)
    return times[limit], limit


def predictions() -> list[dict]:
    """Roofline time of each launch of the reference job on each device, in milliseconds, with what limits it."""
    rows = []
    for w in work():
        row = {"launch": w.launch, "bytes": w.bytes, "fp32_flop": w.fp32_flop, "fp64_flop": w.fp64_flop}
        for device in DEVICES:
            seconds, limit = bound(w, device)
            row[device.name] = {"predicted_ms": round(1e3 * seconds, 4), "limit": limit}
        rows.append(row)
    return rows


def markdown(found: dict) -> str:
    """Render the table."""
    lines = [
        "# CUDA kernels: resources and predicted times",
        "",
        "Written by `python benchmarks/gpu/cuda_resources.py --nvrtc SITE_PACKAGES`. Registers, spills and shared",
        "memory are what the compiler reports; occupancy is computed from them. **Times are predicted, not measured.**",
        "",
        "## Resources per kernel",
        "",
        f"Shared memory of `project` is for {REFERENCE.rows} rows. "
        + "; ".join(f"{a}: {compiler}" for a, compiler in found["compilers"].items())
        + ".",
        "",
        "| kernel | architecture | registers | spilled bytes | shared bytes | occupancy |",
        "|---|---|---|---|---|---|",
    ]
    for name in next(iter(found["kernels"].values())):
        for architecture, kernels in found["kernels"].items():
            n = kernels[name]
            shared = n["static_shared"] + n["dynamic_shared"]
            spilled = n["spill_stores"] + n["spill_loads"]
            facts = f"{n['registers']} | {spilled} | {shared:,} | {n['occupancy_percent']} %"
            lines.append(f"| `{name}` | {architecture} | {facts} |")
    lines += [
        "",
        "## Predicted, not measured: roofline time per launch",
        "",
        f"{REFERENCE.streams} streams x {REFERENCE.rows} rows x {REFERENCE.columns:,} columns, fp32 vectors; "
        f"{REFERENCE.matrices:,} matrices of {REFERENCE.steps} steps. "
        "The time is the largest of bytes / bandwidth,",
        "FLOP / peak of the precision in use, and conversions between fp32 and fp64 / their rate (datasheets: "
        + "; ".join(
            f"{d.name} {d.bandwidth / 1e12:g} TB/s, {d.fp32 / 1e12:g} fp32 and {d.fp64 / 1e12:g} fp64 TFLOP/s"
            for d in DEVICES
        )
        + ").",
        "The second pass counts one read of the basis: its second use of a tile comes from the caches (8 warps share",
        "50 KB at 100 fp32 rows). The quadrature is a chain of dependent roots and divisions, far above its roofline:",
        "at a guessed 300 cycles per rotation it takes 2 ms, whatever the device.",
        "",
        "| launch | GB | GFLOP fp32 | GFLOP fp64 | " + " | ".join(f"{d.name}, ms" for d in DEVICES) + " |",
        "|---|---|---|---|" + "---|" * len(DEVICES),
    ]
    for row in found["work"]:
        times = " | ".join(f"{row[d.name]['predicted_ms']:.3g} ({row[d.name]['limit']})" for d in DEVICES)
        flop = f"{row['fp32_flop'] / 1e9:.4g} | {row['fp64_flop'] / 1e9:.4g}"
        lines.append(f"| {row['launch']} | {row['bytes'] / 1e9:.3g} | {flop} | {times} |")
    return "\n".join(lines) + "\n"
