"""What an adaptive job did for each block, as plain data for the manifest: products, what ended it, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.stopping import Targets, Verdict
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system.formatting import first_names


class Taken(NamedTuple):
    """Products that a block took: of streams, single ones, and of its whole matrix."""

    streams: int
    singles: int
    exact: int


def account(found: Spectrum, taken: Taken, verdict: Verdict | None, settings: JobSettings) -> dict[str, Any]:
    """Say what a block took, and what ended it.

    Args:
        found: What is known of it.
        taken: Its products.
        verdict: The last one; None for a block that was multiplied out.
        settings: What was asked for.
    """
    spent = sum(taken)
    ceiling = settings.probes * min(settings.steps, found.numel)
    errors = {} if verdict is None else {name: _plain(error) for name, error in verdict.errors.items()}
    return {
        "products": spent,
        "products_by_kind": taken._asdict(),
        "ceiling": ceiling,
        "saved": ceiling - spent,
        "stopped_by": _rule(found, verdict, settings),
        "errors": errors,
        "not_reached": [] if verdict is None or verdict.reached else _missed(errors, settings.targets or Targets()),
        **({"why": verdict.reason} if verdict is not None and verdict.reason else {}),
    }


def not_reached(adaptive: Mapping[str, Any]) -> str | None:
    """Put into words what was not reached; None where everything was.

    Args:
        adaptive: Targets and accounts, as the manifest has them.
    """
    blocks: dict[str, list[str]] = {}
    for block, facts in adaptive["blocks"].items():
        for target in facts["not_reached"]:
            blocks.setdefault(target, []).append(block)
    if not blocks:
        return None
    missed = "; ".join(
        f"{target} {adaptive['targets'][target]:g} in {len(names)} of {len(adaptive['blocks'])} blocks "
        f"({first_names(names)})"
        for target, names in blocks.items()
    )
    return (
        f"The tolerance was not reached: {missed}. The bars say what was; raise steps= or probes=, or ask for a larger "
        "tolerance."
    )


def _rule(found: Spectrum, verdict: Verdict | None, settings: JobSettings) -> str:
    """Name the rule that ended a block."""
    if verdict is None:
        return "exact"
    if verdict.zero:
        return "zero"
    if verdict.reached:
        return "tolerance"
    if found.residuals[0] == 0.0 and found.probes >= verdict.probes:
        return "exhausted"
    if found.probes >= settings.probes and verdict.probes > found.probes:
        return "ceiling of probes"
    return "noise" if verdict.reason else "ceiling of steps"


def _missed(errors: Mapping[str, float | None], targets: Targets) -> list[str]:
    """Return the targets whose errors are too large or not known; all of them where none is."""
    asked = targets.record()
    missed = [name for name, target in asked.items() if (error := errors.get(name)) is None or error > target]
    return missed or list(asked)


def _plain(error: float) -> float | None:
    return float(error) if math.isfinite(error) else None
