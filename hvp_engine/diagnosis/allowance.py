"""How long an examination may take, and what of it fits: told from the time of one evaluation of the loss."""

from __future__ import annotations

import time

from hvp_engine.diagnosis.report import Finding
from hvp_engine.system.formatting import format_time

# In evaluations of the same samples: a gradient graph, and a product with a block near the input.
GRAPH = 3
PRODUCT = 6
CHECK = GRAPH + 2 * PRODUCT + 2 * GRAPH  # symmetry, and differences of two gradients
WIDEST = 2  # float64 over float32

_ANYWAY = 3.0  # seconds that a test may take whatever time is left


class Allowance:
    """The seconds of an examination.

    Attributes:
        total: All of them.
        evaluation: Seconds in which the loss of one sample is evaluated (of a batch that cannot be cut, of it all); 0
            until it is known.
    """

    def __init__(self, total: float, started: float) -> None:
        """Begin.

        Args:
            total: The seconds.
            started: When the examination began, by time.monotonic.
        """
        self.total, self.evaluation = total, 0.0
        self._deadline = started + total

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._deadline - time.monotonic()

    def seconds(self, evaluations: float) -> float:
        """Return what so many evaluations of one sample take."""
        return evaluations * self.evaluation

    def allows(self, evaluations: float, share: float = 1.0) -> bool:
        """Say whether so many evaluations of one sample fit into a share of what is left."""
        return self.seconds(evaluations) <= max(share * self.left, _ANYWAY)

    def most(self, samples: int, evaluations: float, share: float) -> int:
        """Return how many samples, of some, a test may take of so many evaluations of each; 0 where none."""
        if self.allows(samples * evaluations, share):
            return samples
        return min(samples, int(max(share * self.left, _ANYWAY) / self.seconds(evaluations)))

    def left_out(self, what: str, code: str, evaluations: float) -> Finding:
        """Make the note about a test for which there was no time.

        Args:
            what: The test, as a subject in the plural: "products".
            code: The finding's.
            evaluations: Of one sample, what the test takes at least.
        """
        needed = self.total - self.left + self.seconds(evaluations)
        message = (
            f"{what} were not tried: to evaluate the loss of one sample takes {format_time(self.evaluation)}, and they "
            f"take {format_time(self.seconds(evaluations))}."
        )
        return Finding("note", code, message, fix=f"give about {format_time(2 * needed)} (seconds={2 * needed:.0f})")
