"""What is left where memory runs out although vectors go one by one and no graph is kept: smaller pieces."""

from __future__ import annotations

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.weights import check_split
from hvp_engine.scheduling import policy


def smaller_pieces(objective: Objective, microbatch: int | None, reason: str) -> tuple[int, int]:
    """Halve the samples of a piece, and see that such pieces recombine.

    Args:
        objective: Loss and data.
        microbatch: Samples of a piece now; None for whole batches.
        reason: What ran out of memory.

    Returns:
        Samples of the largest piece now, and after it.

    Raises:
        OutOfMemoryError: It is one sample already.
        ConfigurationError: The batches cannot be split.
    """
    size = batches.samples(objective.largest_batch())
    current = min(size or 1, microbatch or (size or 1))
    if current <= 1:
        raise OutOfMemoryError(
            f"Out of memory with one sample and one vector at a time ({reason}); use a smaller model or shorter "
            "sequences, activation checkpointing (use_reentrant=False), or a machine with more memory."
        )
    smaller = policy.halve(current)
    with objective.arithmetic():
        check_split(objective, smaller)
    return current, smaller
