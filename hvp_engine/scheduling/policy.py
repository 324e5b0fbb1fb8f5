"""The rules of a job's setting, as pure functions over sizes.

The engine calls them with sizes that it measured, the planner with sizes that it counted: neither has rules of its own.
Sizes alone decide, never timings, so that the same job makes the same choices, and has the same bits, every time.

Where a budget goes: ``TRANSIENT`` times one micro-batch's graph is set apart to build and use one graph (working
bytes); the head's curvature takes what it holds in memory; Lanczos vectors take what is left, wave by wave; graphs stay
alive in a share of what the largest wave leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from hvp_engine.errors import ConfigurationError, ObjectiveError, OutOfMemoryError
from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.waves import Room, StreamSizes, group_streams
from hvp_engine.system.formatting import format_bytes

GRAPH_SHARE = 0.5  # of the budget for graphs that stay; the rest is for vectors and a second backward's temporaries
TRANSIENT = 2.0  # a graph plus the temporaries of its passes, in units of the graph
# The same with convolutions on a CPU: copies in other layouts; in float64 the patches of every position, side by side.
CONVOLVED = {torch.float32: 3.5, torch.float64: 10.0}
CONVOLUTION_PASSES = 2.3  # of that, what passes hold beside the graph in float32, as it is measured
BATCHED_BYTES = 24 << 20  # CPU: above this a vmapped pass leaves the caches and loses to single passes
BATCHED_STREAMS = 16
PASSED_VECTORS = 4  # for each vector of a pass: itself and its product, where they come from and go to, and in the pass

LIBRARIES = 56 << 20  # what PyTorch and its libraries take the first time that they differentiate twice
LIBRARIES_SHARE = 0.3  # of a budget beyond ...
LIBRARIES_FROM = 16 << 20  # ... this that they may take at most: a smaller one is meant for graphs and vectors alone
RESTART_FEWEST = 20  # vectors of restarted Lanczos, as of ARPACK
RESTART_MORE = 10  # most of them, beside three times the wanted pairs

MEMORY_SHARE = 0.25  # of the budget, for a head's matrices in memory; more goes to disk
DISK_SHARE = 0.5  # of what is free on the temporary folder's disk

CurvaturePlace = Literal["memory", "disk", "device memory"]
# FLOP that the machine does while it moves one byte of matrices from there.
BALANCE: dict[CurvaturePlace, float] = {"memory": 16.0, "disk": 128.0, "device memory": 100.0}

# Storage of a head's matrices by the precision of the products.
CURVATURE_DTYPES: dict[Precision, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.bfloat16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class GraphSize:
    """Bytes of a micro-batch's gradient graph: a fixed part and one per sample.

    Attributes:
        fixed: Bytes that no sample adds to.
        per_sample: Bytes that each adds.
        transient: The graph with the temporaries of its passes, in units of the graph, see :func:`transient`.
        beside: Bytes that passes take on top, whatever the graph: what a GPU's head holds of the logits at once.
    """

    fixed: float
    per_sample: float = 0.0
    transient: float = TRANSIENT
    beside: int = 0

    @classmethod
    def measured(cls, samples: int | None, graph_bytes: Callable[[int | None], int]) -> GraphSize:
        """Draw the line through the graphs of one and of two samples, or from zero to the whole batch's.

        The second where few samples define no loss: all of their targets are ignored, they are nodes of one
        graph, or the loss brings labels for all.

        Args:
            samples: Samples of the largest batch; None where it cannot be cut, and counts as a whole.
            graph_bytes: Gives the bytes of a graph of some samples, None for the whole batch.
        """
        if samples is None or samples < 2:
            return cls(float(graph_bytes(samples)))
        try:
            one, two = graph_bytes(1), graph_bytes(2)
        except (ObjectiveError, ConfigurationError):
            pass
        else:
            slope = max(0.0, float(two - one))
            return cls(max(0.0, one - slope), slope)
        return cls(0.0, graph_bytes(None) / samples)  # not in the handler, which would keep the failed graph alive

    def of(self, samples: int | None) -> int:
        """Return the bytes for some samples; None stands for a batch that cannot be cut."""
        return int(self._exactly(samples))

    def fits(self, samples: int | None, budget: int) -> bool:
        """Say whether a graph of some samples and the temporaries of its passes fit."""
        return self.transient * self._exactly(samples) + self.beside <= budget

    def working(self, samples: int | None) -> int:
        """Return what building and using one graph of some samples needs at most."""
        return int(self.transient * self.of(samples)) + self.beside

    def _exactly(self, samples: int | None) -> float:
        return self.fixed + self.per_sample * (samples or 1)


def usable(memory: int | None, free: int) -> int:
    """Return the bytes that graphs, vectors and matrices may take.

    Args:
        memory: What the caller allows; None takes what is free.
        free: What is free, without what is left to libraries.
    """
    return free if memory is None else memory - _of_libraries(memory)


def memory_for(need: int) -> int:
    """Return the least ``memory=`` of which :func:`usable` leaves ``need`` bytes, and a little more."""
    beyond = math.ceil(max(0, need - LIBRARIES_FROM) * LIBRARIES_SHARE / (1.0 - LIBRARIES_SHARE))
    return need + min(LIBRARIES, beyond) + 1


def _of_libraries(memory: int) -> int:
    return int(min(LIBRARIES, LIBRARIES_SHARE * max(0, memory - LIBRARIES_FROM)))


def halve(samples: int) -> int:
    """Return the next smaller micro-batch to try."""
    return (samples + 1) // 2


def transient(dtype: torch.dtype, *, convolves: bool, on_cpu: bool) -> float:
    """Return what a graph takes with the temporaries of its passes, in units of the graph.

    Args:
        dtype: Working dtype.
        convolves: Whether it has convolutions.
        on_cpu: Whether the CPU's libraries compute them.
    """
    return CONVOLVED[dtype] if convolves and on_cpu else TRANSIENT


def choose_microbatch(graph: GraphSize, samples: int | None, budget: int, asked: int | None = None) -> int | None:
    """Halve the largest batch until its graph and the temporaries of its passes fit.

    Args:
        graph: Size of a gradient graph.
        samples: Samples of the largest batch; None where it cannot be cut.
        budget: Bytes for graphs and their temporaries.
        asked: Samples per micro-batch asked for; None starts from the whole batch.

    Returns:
        Samples per micro-batch, None for a batch that cannot be cut.

    Raises:
        OutOfMemoryError: Not even one sample fits.
    """
    wanted = samples if asked is None or samples is None else min(samples, asked)
    while wanted is not None and wanted > 1 and not graph.fits(wanted, budget):
        wanted = halve(wanted)
    need = graph.working(wanted)
    if need > budget:
        raise OutOfMemoryError(
            f"The gradient graph of the smallest micro-batch needs about {format_bytes(need)} with the temporaries of "
            f"its passes, the budget is {format_bytes(budget)}; use a smaller model, shorter sequences or activation "
            f"checkpointing, raise memory= above {memory_for(need):,} bytes, or take a device with more."
        )
    return wanted


def make_room(graph: GraphSize, samples: int | None, budget: int, stream_bytes: int) -> int | None:
    """Halve a micro-batch until one stream's vectors fit beside its graph, so that more memory never serves worse.

    Args:
        graph: Size of a gradient graph.
        samples: Samples per micro-batch, as chosen by :func:`choose_microbatch`; None where batches cannot be cut.
        budget: Bytes for everything.
        stream_bytes: Vectors of the largest stream.

    Returns:
        Samples per micro-batch; where no size makes room, the least, with which :func:`choose_waves` says what would.
    """
    wanted = samples
    while wanted is not None and wanted > 1 and spare(graph.working(wanted), budget, stream_bytes) < 0:
        wanted = halve(wanted)
    return wanted


def spare(working: int, budget: int, stream_bytes: int) -> int:
    """Return what is left of a budget beside one micro-batch's graph, as it is worked with, and a stream's vectors."""
    return budget - working - stream_bytes


def choose_streams_per_pass(graph_bytes: int, vector_bytes: int, budget: int, *, on_cpu: bool) -> int:
    """Choose how many vectors one second backward pass carries.

    Args:
        graph_bytes: Bytes of one micro-batch's graph; a vmapped pass has temporaries of that size per vector.
        vector_bytes: Bytes of one vector; 0 gives the most that blocks of any size have.
        budget: Bytes for graphs and their temporaries, see :func:`budget_of_graphs`: kept graphs take half of them.
        on_cpu: Whether a pass should stay in the caches.
    """
    room = BATCHED_BYTES if on_cpu else budget // 4
    return max(1, min(BATCHED_STREAMS, room // max(1, graph_bytes + PASSED_VECTORS * vector_bytes)))


def count_kept_graphs(graph_bytes: int, gradient_bytes: int, working: int, budget: int) -> int:
    """Return how many graphs may stay alive between sweeps in what :func:`budget_of_graphs` leaves to them.

    Args:
        graph_bytes: Bytes that one graph keeps alive.
        gradient_bytes: The gradient at its root.
        working: What one graph needs with the temporaries of its passes.
        budget: Bytes for graphs and their temporaries.
    """
    further = working - int(TRANSIENT * graph_bytes)  # temporaries that the other half does not have room for
    return max(0, int((budget - further) * GRAPH_SHARE) // max(1, graph_bytes + gradient_bytes))


def budget_of_graphs(budget: int, working: int, taken: int) -> int:
    """Return what is left to graphs and their temporaries: never less than one graph needs.

    Args:
        budget: Bytes for everything.
        working: What one micro-batch's graph needs.
        taken: Bytes that Lanczos vectors and the head's curvature take.
    """
    return max(working, budget - taken)


@dataclass(frozen=True)
class Waves:
    """Which streams run together.

    Attributes:
        groups: The (block, probe) pairs of every wave.
        vector_bytes: Lanczos vectors of the largest wave, and what stays of all, on the device.
        elsewhere_bytes: The same of host memory or the disk.
    """

    groups: list[list[Stream]]
    vector_bytes: int
    elsewhere_bytes: int


def choose_waves(
    streams: StreamSizes, budget: int, working: int, held: int, rooms: Mapping[Elsewhere, float] | None = None
) -> Waves:
    """Group the streams so that each group's vectors fit beside one micro-batch's graph.

    Args:
        streams: Sizes of all streams.
        budget: Bytes for everything.
        working: What one micro-batch's graph needs with the temporaries of its passes.
        held: Bytes of memory that the head's curvature takes.
        rooms: Bytes for vectors that are kept elsewhere, see :mod:`hvp_engine.scheduling.storages`; None sets no limit.

    Raises:
        OutOfMemoryError: Not even one stream of some block fits.
    """
    elsewhere = streams.elsewhere
    away = math.inf if elsewhere is None or rooms is None else rooms[elsewhere]
    room = Room(budget - working - held - streams.results, away)

    def refuse(block: str, need: int, is_elsewhere: bool) -> OutOfMemoryError:
        numel, steps = streams.numel[block], streams.steps_of(block)
        stream = f"One stream of block {block!r} ({numel:,} parameters, {steps} steps) needs {format_bytes(need)}"
        if is_elsewhere:
            where = "on the disk" if elsewhere == "disk" else "in host memory"
            other = "set TMPDIR to a folder with more, " if elsewhere == "disk" else ""
            return OutOfMemoryError(
                f"{stream} {where}; {format_bytes(int(room.elsewhere))} may be taken there. Free some, {other}use "
                "fewer steps, or smaller blocks."
            )
        return OutOfMemoryError(
            f"{stream}; {format_bytes(max(room.here, 0))} are left beside the gradient graph. Use "
            f"{streams.ways_out}smaller blocks, a smaller micro-batch, raise memory= to at least "
            f"{memory_for(need + working + held + streams.results):,} bytes, or take a device with more."
        )

    groups, vector_bytes, elsewhere_bytes = group_streams(streams, room, refuse)
    return Waves(groups, vector_bytes + streams.results, elsewhere_bytes)


def choose_restart_size(pairs: int, numel: int, room: float, itemsize: int) -> int:
    """Choose how many vectors of a block restarted Lanczos keeps: more of them need fewer products.

    With three times the wanted ones they were within 3 % of those without a restart, with twice as many within 25 %.

    Args:
        pairs: Wanted eigenpairs.
        numel: Length of a vector.
        room: Bytes that there are for them; where that is too little, the fewest that serve.
        itemsize: Bytes of a number.
    """
    fewest, most = max(2 * pairs + 1, RESTART_FEWEST), 3 * pairs + RESTART_MORE
    return min(numel, max(fewest, min(most, int(room // (numel * itemsize)))))


@dataclass(frozen=True)
class CurvaturePlan:
    """Where a head's matrices go.

    Attributes:
        dtype: Storage type.
        bytes: Size of all of them.
        place: ``"memory"``, ``"disk"`` or ``"device memory"``.
    """

    dtype: torch.dtype
    bytes: int
    place: CurvaturePlace

    @property
    def memory_bytes(self) -> int:
        """What of it takes memory of the device that computes."""
        return 0 if self.place == "disk" else self.bytes

    def __str__(self) -> str:
        """Return words for logs and manifests."""
        where = "on disk" if self.place == "disk" else f"in {self.place}"
        return f"{str(self.dtype).removeprefix('torch.')}, {self.bytes / 2**20:.0f} MiB {where}"  # as manifests have it


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of a linear head and of the data that passes it.

    Attributes:
        tokens: Rows of logits in one sweep.
        hidden_size: Width of the hidden states.
        classes: Width of the logits.
        products: Products with blocks that do not hold the head's weights, over the whole job.
    """

    tokens: int
    hidden_size: int
    classes: int
    products: int


def head_tokens(rows: int, samples: int | None) -> int:
    """Return the rows of logits of a batch.

    Args:
        rows: Rows that its first samples have, see :func:`hvp_engine.problem.batches.few_samples`.
        samples: Samples of the batch; None where it cannot be cut, and ``rows`` are those of all of it.
    """
    return rows if samples is None else rows * samples // min(samples, 2)


def products_past_head(products: Mapping[str, int], holders: frozenset[str]) -> int:
    """Return how many products of a job pass through the head to the hidden states alone.

    Args:
        products: Products by block.
        holders: Blocks that hold the head's weights.
    """
    return sum(count for block, count in products.items() if block not in holders)


def choose_curvature(
    head: HeadSizes, precision: Precision, budget: int, left: int, disk: int, *, on_cpu: bool
) -> CurvaturePlan | None:
    """Decide whether forming the head's curvature once pays, and where it goes.

    Args:
        head: Sizes of the head.
        precision: Arithmetic of the products.
        budget: Bytes of memory for the whole job.
        left: Bytes of it beside one graph and one stream's vectors, see :func:`spare`.
        disk: Bytes free for temporary files.
        on_cpu: Whether matrices that are too large for memory may go to disk; a GPU keeps them or has none.

    Returns:
        None where the general path costs less, or the matrices fit nowhere.
    """
    dtype = CURVATURE_DTYPES[precision]
    cost = head_cost(head.tokens, head.hidden_size, head.classes, dtype, kept_logits=True)
    place: CurvaturePlace
    # What forming takes is free: at most two arrays as large as the logits, which are a part of the graph.
    if cost.stored_bytes <= min(MEMORY_SHARE * budget, left):
        place = "memory" if on_cpu else "device memory"
    elif on_cpu and cost.stored_bytes <= DISK_SHARE * disk:
        place = "disk"
    else:
        return None
    apply = max(cost.apply_flop, BALANCE[place] * cost.apply_bytes)
    if head.products * (cost.general_flop - apply) <= cost.form_flop:
        return None
    return CurvaturePlan(dtype, cost.stored_bytes, place)
