"""How much of a micro-batch the test of the second derivative takes, and how wide its arithmetic is: rules over sizes.

Engine and planner call them, as they do the other rules, in :mod:`hvp_engine.scheduling.policy`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvp_engine.scheduling.policy import halve, working_bytes

CHECK_PRODUCTS = 9  # what the test of the second derivative costs, in products of the same samples
CHECK_SHARE = 0.04  # of the job's products that the test may cost
CHECK_FEWEST = 16
CHECK_VECTORS = 9  # over all blocks, alive in the test at once: gradients here and beside, differences, products
CHECK_BESIDE = 0.5  # of a graph: that of the gradient alone, at a point beside


@dataclass(frozen=True)
class CheckedSizes:
    """What the test of the second derivative is made of.

    Attributes:
        samples: Samples of the micro-batch that it may take; None where it cannot be cut.
        graph_bytes: That micro-batch's graph, as the job has it.
        vector_bytes: One vector over all blocks, likewise.
        copy_bytes: A copy of the model in float64; 0 where the job computes in that.
    """

    samples: int | None
    graph_bytes: int
    vector_bytes: int
    copy_bytes: int

    def bytes_of(self, samples: int | None, *, widest: bool) -> int:
        """Return what the test of some samples needs, in float64 or in the job's own dtype."""
        width = 2 if widest and self.copy_bytes else 1
        graph = self.graph_bytes if samples is None else self.graph_bytes * samples // (self.samples or 1)
        held = working_bytes(graph) + CHECK_VECTORS * self.vector_bytes
        return width * held + (self.copy_bytes if widest else 0)


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
    while wanted is not None and samples is not None and wanted > 1:
        fits = sizes.bytes_of(wanted, widest=widest) <= budget
        # The overhead of a handful of samples is that of one.
        if fits and (wanted <= CHECK_FEWEST or CHECK_PRODUCTS * wanted <= CHECK_SHARE * products * samples):
            break
        wanted = halve(wanted)
    return wanted
