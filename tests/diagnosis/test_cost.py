"""What a job is measured to cost, per micro-batch size and as a whole."""

from __future__ import annotations

from custom_functions import Sound
from patients import Model, examine


def test_every_micro_batch_size_is_measured_and_a_job_extrapolated() -> None:
    report = examine(Model(Sound.apply))
    assert [cost.microbatch for cost in report.costs] == [1, 2, 4]
    assert all(cost.hvp_seconds > 0 and cost.graph_bytes > 0 for cost in report.costs)
    assert report.costs[2].graph_bytes > report.costs[0].graph_bytes
    seconds, double = report.job_seconds(100, 1), report.job_seconds(200, 1)
    assert seconds is not None and double is not None and 1.5 * seconds < double < 2.5 * seconds
