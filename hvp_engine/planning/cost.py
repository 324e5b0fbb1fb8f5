"""Time of every part of a job on a device, from counted work and the device's ceilings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hvp_engine.krylov.registry import row_bytes
from hvp_engine.planning.counting import Counts
from hvp_engine.planning.devices import Device
from hvp_engine.planning.head_cost import head_passes
from hvp_engine.planning.parts import PartCost, operations, total
from hvp_engine.planning.setting import JobSizes, Setting

_READS = 3  # of the growing basis per step: two passes of Gram-Schmidt, of which the middle two halves share one
_VECTOR_PASSES = 12  # over a stream's newest vectors per step: product, scaling, checks, copy into the basis
_QUADRATURE = 5e-9  # seconds per squared step of one tridiagonal matrix, on two cores (benchmarks/results)
_DENSE = 3e-9  # seconds per cubed row of a matrix: its eigenvalues, and the tridiagonal matrix that has them


@dataclass(frozen=True)
class Calibration:
    """Corrections measured on the job's own model.

    Attributes:
        graph: Measured over counted seconds of a gradient graph.
        product: Measured seconds of one product as a function of the counted ones.
        setup: Seconds of planning and verification.
        touch: Seconds per byte of fresh memory, page faults included.
    """

    graph: float = 1.0
    product: Callable[[float], float] = field(default=lambda seconds: seconds)
    setup: float = 0.0
    touch: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """Parts of a job.

    Attributes:
        parts: By name, in order of execution.
        blocks: Second backward passes by block.
        head: The head's share of the second backward passes; None without a head.
    """

    parts: dict[str, PartCost]
    blocks: dict[str, PartCost]
    head: PartCost | None

    @property
    def seconds(self) -> float:
        """Total time."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def flop(self) -> float:
        """Total work."""
        return sum(part.flop for part in self.parts.values())


def predict(
    counts: Counts,
    job: JobSizes,
    setting: Setting,
    device: Device,
    calibration: Calibration | None = None,
) -> Prediction:
    """Put the parts of a job together.

    Args:
        counts: Work of one micro-batch.
        job: Sizes.
        setting: How it is run.
        device: Where.
        calibration: Corrections measured there.
    """
    calibration = calibration or Calibration()
    curvature, products = setting.curvature, job.products
    sweeps = sum(setting.sweeps)
    builds = graph_builds(setting) * setting.share
    parts: dict[str, PartCost] = {}
    if calibration.setup:
        parts["checks and planning"] = PartCost(0.0, 0.0, calibration.setup, "compute")
    graph_factor = builds * calibration.graph
    for name, work in (("forward", counts.forward), ("first backward", counts.gradient)):
        part = operations(work, device, setting.precision)
        parts[name] = PartCost(part.flop * builds, part.bytes * builds, part.seconds * graph_factor, part.limit)
    head = head_passes(counts, device, setting)
    blocks: dict[str, PartCost] = {}
    through_head: list[PartCost] = []
    for name, work in counts.blocks.items():
        passes = products[name] * setting.microbatches * setting.share
        part = operations(work, device, setting.precision, setting.vectors_per_pass[name])
        scale = calibration.product(part.seconds) / part.seconds if part.seconds else 1.0
        if head is not None and counts.passes_head(name):
            general = head.general_within(part)
            through_head.append(general.times(passes, scale))
            if curvature is not None:
                part = part.instead(general, head.applied)
        blocks[name] = part.times(passes, scale)
    parts["second backwards"] = total([*blocks.values()])
    if curvature is not None and head is not None:
        parts["head curvature"] = head.formed(sweeps, setting, device, curvature.place)
    parts["reorthogonalisation"] = reorthogonalisation(job, setting, device, calibration.touch)
    parts["quadrature"] = _quadrature(job)
    return Prediction(parts, blocks, total(through_head) if through_head else None)


def graph_builds(setting: Setting) -> int:
    """Count how many gradient graphs the job builds: every sweep those that are not kept, and the kept ones once."""
    return sum(setting.sweeps) * (setting.microbatches - setting.kept_graphs) + setting.kept_graphs


def reorthogonalisation(job: JobSizes, setting: Setting, device: Device, touch: float = 0.0) -> PartCost:
    """Three reads of the growing basis per step and stream, from where it is, the newest vectors, and fresh memory.

    A single product reads the whole basis twice.
    """
    settings = job.settings
    kept = job.with_settings(basis=setting.basis).settings.lanczos.kept
    item = settings.dtype.itemsize
    traffic = read = flop = fresh = 0.0
    for block, work in job.work.items():
        numel, steps = job.numel[block], work.steps
        rows = work.probes * (steps * (steps + 1) / 2 if kept is not None else 2.0 * steps)
        rows += work.singles * steps * 2 / _READS
        size = numel * item if kept is None else row_bytes(numel, kept)
        read += _READS * rows * size
        traffic += numel * work.products * _VECTOR_PASSES * item
        flop += numel * 8.0 * rows
        fresh += work.probes * steps * size if kept is not None and kept.elsewhere is None else 0.0
    basis, efficiencies = f"reorthogonalise {setting.basis}", device.efficiencies
    bandwidth = device.bandwidth * efficiencies.of_bandwidth(basis, "reorthogonalise")
    seconds = traffic / bandwidth + fresh * touch
    if setting.reads_from is None:
        return PartCost(flop, traffic + read, seconds + read / bandwidth, "bandwidth")
    return PartCost(flop, traffic + read, seconds + read / device.reads[setting.reads_from], setting.reads_from)


def _quadrature(job: JobSizes) -> PartCost:
    seconds = sum(w.probes * _QUADRATURE * w.steps**2 + _DENSE * w.columns**3 for w in job.work.values())
    return PartCost(0.0, 0.0, seconds, "compute")
