"""What a scheduler decided about its sweeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class SweepPlan:
    """What the scheduler decided; recorded in the manifest.

    Attributes:
        microbatch: Samples per micro-batch; None leaves the batches as they are.
        streams_per_pass: Vectors pushed through one second backward, at most: fewer of a block whose vectors are long.
        graph_bytes: Estimated size of the largest micro-batch's graph.
        kept_graphs: Graphs alive between sweeps.
        budget: Bytes that graphs and their temporaries may take.
        single_passes: Why vectors of some block go one by one all the same, in words; None where none do.
        processes: How many processes share streams and data, by axis; None for one process.
    """

    microbatch: int | None
    streams_per_pass: int
    graph_bytes: int
    kept_graphs: int
    budget: int
    single_passes: str | None = None
    processes: dict[str, int] | None = None

    def record(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        said = ("single_passes", "processes")  # where there is something to say
        return {name: value for name, value in asdict(self).items() if name not in said or value is not None}
