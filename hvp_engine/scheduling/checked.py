"""How much of a micro-batch the test of the second derivative takes, and how wide its arithmetic is: rules over sizes.

Engine and planner call them, as they do the other rules, in :mod:`hvp_engine.scheduling.policy`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.policy import TRANSIENT, halve

CHECK_PRODUCTS = 9  # what the test of the second derivative costs, in products of the same samples
CHECK_SHARE = 0.04  # of the job's products that the test may cost
CHECK_FEWEST = 16
CHECK_VECTORS = 9  # over all blocks, alive in the test at once: gradients here and beside, differences, products
CHECK_MIXED = 1.5  # a graph in float32, over one in which the operands of products are bfloat16
CHECK_CONVOLVED = 64 << 20  # with convolutions, whose temporaries vary, it takes no more than this or a sweep


@dataclass(frozen=True)
class CheckedSizes:
    """What the test of the second derivative is made of.

    Attributes:
        samples: Samples of the micro-batch that it may take; None where it cannot be cut.
        graph_bytes: That micro-batch's graph in the job's working dtype, see :func:`unmixed`.
        vector_bytes: One vector over all blocks, likewise.
        copy_bytes: A copy of the model in float64; 0 where the job computes in that.
        transient: The graph with the temporaries of its passes, in units of the graph.
        widest_transient: The same in float64.
    """

    samples: int | None
    graph_bytes: int
    vector_bytes: int
    copy_bytes: int
    transient: float = TRANSIENT
    widest_transient: float = TRANSIENT

    def bytes_of(self, samples: int | None, *, widest: bool) -> int:
        """Return what the test of some samples needs, in float64 or in the job's own dtype."""
        width = 2 if widest and self.copy_bytes else 1
        graph = self.graph_bytes if samples is None else self.graph_bytes * samples // (self.samples or 1)
        working = int((self.widest_transient if widest else self.transient) * graph)
        return width * (working + CHECK_VECTORS * self.vector_bytes) + (self.copy_bytes if widest else 0)


def unmixed(graph_bytes: int, precision: Precision) -> int:
    """Return the bytes of a job's graph where all of it is in the working dtype, as it is in the test."""
    return int(CHECK_MIXED * graph_bytes) if precision == "bf16" else graph_bytes


def is_checked_in_float64(sizes: CheckedSizes, budget: int) -> bool:
    """Say whether the test of the second derivative, of one sample at least, fits in the widest arithmetic."""
    return sizes.bytes_of(None if sizes.samples is None else 1, widest=True) <= budget


def choose_samples_to_check(sizes: CheckedSizes, budget: int, products: int) -> int | None:
    """Halve a micro-batch until the test of its second derivative fits and costs little of the job.

    Args:
        sizes: What the test is made of.
        budget: Bytes for everything.
        products: How many products the job multiplies the micro-batch with.

    Returns:
        Samples; None for a micro-batch that cannot be cut.
    """
    wanted, samples = sizes.samples, sizes.samples
    widest = is_checked_in_float64(sizes, budget)
    if sizes.transient > TRANSIENT:
        budget = min(budget, max(CHECK_CONVOLVED, int(sizes.transient * sizes.graph_bytes)))
    while wanted is not None and samples is not None and wanted > 1:
        fits = sizes.bytes_of(wanted, widest=widest) <= budget
        # The overhead of a handful of samples is that of one.
        if fits and (wanted <= CHECK_FEWEST or CHECK_PRODUCTS * wanted <= CHECK_SHARE * products * samples):
            break
        wanted = halve(wanted)
    return wanted
