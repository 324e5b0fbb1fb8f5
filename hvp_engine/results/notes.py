"""Lines below a table: what its bars mean, how its numbers were made, what is left out, and what was not reached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hvp_engine.results.estimate import Estimate
from hvp_engine.results.summary import BlockSummary, Summary
from hvp_engine.results.words import half_width, is_known
from hvp_engine.system.formatting import abbreviate, format_count, format_number

_TITLES = {
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "smallest": "smallest",
    "largest": "largest",
    "outliers": "outliers",
    "js0": "JS0",
}
BARS = "±: 95 % bars, for probes and Lanczos steps; not for the choice of data."
_LISTED = 12  # names in one line; the rest are counted


def notes(summary: Summary) -> list[str]:
    """Write what a reader of the table must know, one text per subject; most subjects are absent from most tables."""
    return [
        *matrix_note(summary.matrix),
        *_bars(summary),
        *_readings(summary),
        *_zero(summary),
        *_missed(summary.blocks),
        *_spent(summary.blocks),
    ]


def matrix_note(matrix: str | None) -> Iterator[str]:
    """Say whose spectra they are, unless they are the Hessian's."""
    if matrix is not None:
        yield f"Matrix: {matrix}, in place of the Hessian."


def _bars(summary: Summary) -> Iterator[str]:
    estimates = [e for block in summary.blocks for kind, e in block.numbers.items() if kind != "outliers"]
    estimates.append(summary.js0)
    said = [BARS]
    if any(not is_known(e.value, half) for e in estimates if (half := half_width(e)) < float("inf")):
        said.append("? ± b: not known, but within b of zero.")
    if any(_has_no_bar(e) for e in estimates):
        said.append("± ?, ≤, ≥, or less, or more: without a bar; what the run kept does not give one.")
    yield " ".join(said)


def _has_no_bar(estimate: Estimate) -> bool:
    return estimate.value == estimate.value and not half_width(estimate) < float("inf") and estimate.reading != "exact"


def _readings(summary: Summary) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    for kind, readings in summary.readings().items():
        if readings:
            kinds.setdefault(" or ".join(readings), []).append(_TITLES[kind])
    if kinds:
        yield "Readings: " + "; ".join(f"{', '.join(titles)}: {reading}" for reading, titles in kinds.items()) + "."


def _zero(summary: Summary) -> Iterator[str]:
    if names := summary.zero_blocks:
        yield f"Zero curvature, left out of JS0: {_listed(names)}."


def _missed(blocks: Sequence[BlockSummary]) -> Iterator[str]:
    missed = [block for block in blocks if block.account.missed]
    if not missed:
        return
    names = abbreviate([block.name for block in missed])
    texts = [
        f"{name} {', '.join(_error(*parts) for parts in block.account.missed.items())}: {block.account.stopped_by}"
        for name, block in zip(names, missed, strict=True)
    ]
    yield f"! Not reached ({len(missed)} of {len(blocks)} blocks): {'; '.join(_first(texts))}."


def _error(target: str, sizes: tuple[float, float]) -> str:
    error, wanted = sizes
    known = "unknown" if math.isnan(error) else format_number(error, 2)
    return f"{target} {known} ({format_number(wanted, 2)} asked)"


def _spent(blocks: Sequence[BlockSummary]) -> Iterator[str]:
    accounts = [block.account for block in blocks]
    spent = sum(account.products for account in accounts)
    ceilings = [account.ceiling for account in accounts if account.ceiling is not None]
    if len(ceilings) == len(accounts) and sum(ceilings) > 0:
        at_most = f"the {format_count(sum(ceilings))} at the ceilings of steps and probes"
        if spent > sum(ceilings):
            yield f"Products: {format_count(spent)}, more than {at_most}: those of single vectors come on top."
            return
        share = format_number(100.0 * (1.0 - spent / sum(ceilings)), 3)
        saved = f"; {share} % saved" if spent < sum(ceilings) else ""
        yield f"Products: {format_count(spent)} of {at_most}{saved}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_first(abbreviate(names)))


def _first(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _LISTED
    return [*texts[:_LISTED], *([f"and {more} more"] if more > 0 else [])]
