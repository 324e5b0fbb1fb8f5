"""Whether a loss is the same the second time: a first value that waits for an evaluation of the same samples."""

from __future__ import annotations

from dataclasses import dataclass

from hvp_engine.errors import NonDeterministicError
from hvp_engine.problem.steady import Key

_ROUNDING = 1e-6  # atomics on a GPU may reorder sums: rounding is allowed, no more


@dataclass(frozen=True)
class Sight:
    """What the first evaluation of a loss made.

    Attributes:
        bytes: Results of its operations, and what was saved for a backward pass.
        samples: Of how many samples; None for a batch that cannot be cut.
        convolves: Whether there are convolutions.
    """

    bytes: int
    samples: int | None
    convolves: bool

    def of(self, samples: int | None) -> float:
        """Return the bytes for some samples, at most."""
        return self.bytes * (1.0 if samples is None or not self.samples else max(1.0, samples / self.samples))


class FirstValue:
    """The first value of a loss.

    Attributes:
        key: The micro-batch of a sweep whose evaluation is the second one; None where it is made for its own sake.
    """

    def __init__(self) -> None:
        """Begin without one."""
        self._value: float | None = None
        self.key: Key | None = None

    @property
    def waits(self) -> bool:
        """Whether nothing has shown yet that the loss is the same again."""
        return self._value is not None

    def begin(self, value: float) -> None:
        """Take the first value."""
        self._value, self.key = value, None

    def meet(self, value: float) -> bool:
        """Compare with a value of the same samples; where they agree nothing waits any more."""
        agree = self._value is None or not differ(self._value, value)
        if agree:
            self._value = self.key = None
        return agree

    def refuse_other(self, value: float) -> None:
        """Refuse a loss whose second value is another one.

        Raises:
            NonDeterministicError: It is.
        """
        first = self._value
        if not self.meet(value):
            raise NonDeterministicError(
                f"Two evaluations of the same batch gave {first:.9g} and {value:.9g}: the loss depends on something "
                "that it changes itself, such as a counter, a cache or the batch. Mend the loss or the model."
            )


def differ(first: float, second: float) -> bool:
    """Say whether two values of one loss differ by more than rounding."""
    return abs(first - second) > _ROUNDING * max(abs(first), abs(second))
