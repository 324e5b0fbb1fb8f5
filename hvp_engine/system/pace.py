"""How fast work went lately, and how long the rest takes at that speed."""

from __future__ import annotations

import math
from collections import deque

_STEPS = 10  # pieces of work that speed is measured over, at least,
_SECONDS = 20.0  # and for so long
_CLOSE = 0.1  # seconds within which two pieces count as one


class Pace:
    """A moving window over finished work: the first steps of a job, which prepare much, are forgotten soon."""

    def __init__(self, now: float) -> None:
        """Begin to measure."""
        self._marks: deque[tuple[float, float]] = deque([(now, 0.0)])  # when, and what was done by then

    def begin(self, now: float) -> None:
        """Begin anew: what was done so far says nothing of the speed."""
        self._marks = deque([(now, 0.0)])

    def add(self, amount: float, now: float) -> None:
        """Count finished work."""
        marks = self._marks
        done = marks[-1][1] + amount
        if len(marks) > _STEPS and now - marks[-2][0] < _CLOSE:
            marks.pop()
        marks.append((now, done))
        while len(marks) > _STEPS + 1 and now - marks[1][0] >= _SECONDS:
            marks.popleft()

    def left(self, amount: float, now: float) -> float:
        """Return the seconds that so much more work takes; infinity where nothing is known of the speed yet.

        Between two pieces it counts down, by no more than the time of one.
        """
        (began, before), (ended, done) = self._marks[0], self._marks[-1]
        if amount <= 0:
            return 0.0
        if done <= before:
            return math.inf
        piece = (ended - began) / (len(self._marks) - 1)
        return max(0.0, amount * (ended - began) / (done - before) - min(max(0.0, now - ended), piece))
