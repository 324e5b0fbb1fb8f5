"""Every batch's graph, not only the first samples': a model may take other paths elsewhere in the data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from hvp_engine.diagnosis.report import Finding
from hvp_engine.errors import HvpEngineError, ObjectiveError, SecondDerivativeError
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.inspection import GraphInspection
from hvp_engine.operators.verification import verify
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective

_SAMPLES = 16  # at once: a whole batch may not fit


def examine_paths(objective: Objective, names: tuple[str, ...], seconds: float) -> list[Finding]:
    """Look at the graphs of all data as a job does when it first meets them, up to the first error.

    Args:
        objective: The job's objective, with all of its data.
        names: The parameters that blocks touch.
        seconds: What is not reached in this time is left out, and a note says so.

    Returns:
        An error, or a note that not everything was reached, or nothing.
    """
    inspection = GraphInspection()
    deadline = time.monotonic() + seconds
    try:
        for number, piece in _pieces(objective):
            if time.monotonic() > deadline:
                message = f"The graphs of batches from number {number} on were not looked at."
                return [Finding("note", "batches-not-reached", message, fix="give more seconds")]
            try:
                _look(objective, names, inspection, piece)
            except SecondDerivativeError as error:
                message, _, _ = str(error).partition(" check=False")
                return [Finding("error", "rare-path", f"On batch {number}: {message}")]
            except (ObjectiveError, RuntimeError):  # a mean over samples whose targets are all ignored, say
                continue
    except HvpEngineError:  # the data changed, which is reported already
        pass
    return []


def _look(objective: Objective, names: tuple[str, ...], inspection: GraphInspection, piece: Any) -> None:
    with objective.arithmetic():
        total, weight = objective.evaluate(piece)
        unknown = inspection.unknown_functions(object(), total)
        graph = GradientGraph(total, weight, {name: objective.parameters[name] for name in names})
        graph.refuse_cuts()
        del graph, total
        if unknown:
            _, tested = verify(objective, names, [piece], unknown)
            inspection.trusted |= tested


def _pieces(objective: Objective) -> Iterator[tuple[int, Any]]:
    for number, batch in objective.batches():
        size = batches.samples(batch)
        if size is None:
            yield number, batch
            continue
        for start in range(0, size, _SAMPLES):
            yield number, batches.cut(batch, start, min(start + _SAMPLES, size))
