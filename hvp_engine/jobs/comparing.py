"""Two finished runs, compared: their numbers, and in what their jobs differ."""

from __future__ import annotations

from hvp_engine.jobs.comparison import differences
from hvp_engine.jobs.finished import Run, finished
from hvp_engine.results.compared import Comparison


def compare(first: Run, second: Run) -> Comparison:
    """Compare two runs; see :func:`hvp_engine.compare`."""
    one, other = finished(first, "The first run"), finished(second, "The second run")
    known = one.identity and other.identity
    return Comparison(
        one.spectra,
        other.spectra,
        (one.label, other.label),
        differences(one.identity, other.identity) if known else (),
    )
