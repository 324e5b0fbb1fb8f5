"""A job that several processes share, each on a device of its own: what the one with most to do has to do."""

from __future__ import annotations

import math
from dataclasses import replace

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.settings import whole_number
from hvp_engine.planning.cost import Prediction
from hvp_engine.planning.devices import Device
from hvp_engine.planning.parts import PartCost
from hvp_engine.planning.setting import JobSizes, Setting
from hvp_engine.processes.team import Axes
from hvp_engine.scheduling import policy
from hvp_engine.scheduling.axes import DataSizes, Sharing, choose_axes, part_of_streams
from hvp_engine.scheduling.policy import GraphSize

_MOST_BATCHES = 10_000  # of equal size, beyond which one more or less for a process does not count


def checked_processes(processes: int) -> int:
    """Return a number of processes as an int.

    Raises:
        ConfigurationError: It is no whole number of at least 1.
    """
    return whole_number("processes", processes, 1)


def share(job: JobSizes, setting: Setting, graph: GraphSize, processes: int) -> tuple[Axes, JobSizes]:
    """Arrange processes by the engine's rule; return that, and the job of the process with most to do.

    Args:
        job: The whole job.
        setting: How one process would run it.
        graph: Size of its graphs.
        processes: How many share it.

    Raises:
        ConfigurationError: There are more processes than there is work to share.
    """
    count = min(_MOST_BATCHES, math.ceil(job.batches))
    data = DataSizes((job.samples,) * count, setting.microbatch, divisible=job.samples is not None)
    streams = job.streams
    counts = {block: len(streams.probes_of(block)) for block in streams.numel}
    targets = job.settings.targets
    sharing = Sharing(
        streams=sum(counts.values()),
        data=data,
        kept=setting.kept_graphs,
        stream_bytes=sum(number * streams.bytes_of(block) for block, number in counts.items()),
        room=policy.spare(graph.working(setting.microbatch), setting.budget, setting.held_bytes),
        most_groups=None if targets is None or targets.js is None else 1,
    )
    pieces = count * (job.samples or 1)
    if processes > sharing.streams * pieces:  # far too many to look for an arrangement
        raise _too_many(processes, sharing.streams, pieces)
    axes = choose_axes(processes, sharing)
    most = data.cut_for(axes.data)
    parts = [part for group in range(axes.probes) if (part := part_of_streams(streams, group, axes.probes)) is not None]
    if len(parts) < axes.probes or len(data.spans(most)) < axes.data:
        raise _too_many(processes, sharing.streams, len(data.spans(most)))
    mine = max(parts, key=lambda part: sum(size * len(part.probes_of(block)) for block, size in part.numel.items()))
    dealt = {block: len(mine.probes_of(block)) for block in mine.numel}
    return axes, replace(
        job,
        settings=replace(job.settings, microbatch=most),
        numel=dict(mine.numel),
        batches=job.batches * data.largest_part(axes.data, most),
        dealt=dealt if targets is None else None,
    )


def _too_many(processes: int, streams: int, pieces: int) -> ConfigurationError:
    return ConfigurationError(
        f"processes={processes} is more than can share this job, which has {streams} streams and {pieces} pieces of "
        "data; plan for fewer."
    )


def with_sums(prediction: Prediction, job: JobSizes, axes: Axes, device: Device) -> Prediction:
    """Add what it takes to add products up over the processes that share the data.

    Args:
        prediction: Of one process.
        job: That process's.
        axes: How the processes are arranged.
        device: What they run on.
    """
    if axes.data == 1:
        return prediction
    vectors = sum(products * job.numel[block] for block, products in job.products.items())
    size = 2.0 * (axes.data - 1) / axes.data * vectors * job.settings.dtype.itemsize  # there, and the sums back
    part = PartCost(0.0, size, size / device.link, "network")
    return replace(prediction, parts={**prediction.parts, "sums over processes": part})
