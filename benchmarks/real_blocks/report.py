"""The committed table of the study, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from .adaptive import DEFAULT
from .equal_error import PAPER_PRODUCTS
from .scores import SCORES

Row = dict[str, Any]
CLASSES = {"1k to 10k": (1_000, 10_000), "100k and more": (100_000, 1 << 40)}


def in_class(row: Row, name: str) -> bool:
    """Say whether a row's block is in a class of sizes."""
    low, high = CLASSES[name]
    return low <= row["numel"] < high


def ratio(products: float | None) -> float:
    """Return how many times fewer products than the paper's; 0 where its error was not reached."""
    return PAPER_PRODUCTS / products if products else 0.0


def medians(rows: Iterable[Row], of: Callable[[Row, str], float]) -> dict[str, dict[str, float]]:
    """Return the median over blocks of a number by score, by class of sizes."""
    kept = list(rows)
    return {
        name: {
            score: statistics.median([of(row, score) for row in kept if in_class(row, name)] or [0.0])
            for score in SCORES
        }
        for name in CLASSES
    }


def end_to_end(replayed: list[Row], equal: list[Row]) -> list[Row]:
    """Return a row per block: the products of the loosest tolerance whose median error is the paper's at most."""
    rows = []
    for row in equal:
        mine = [r for r in replayed if (r["network"], r["block"]) == (row["network"], row["block"])]
        products = {
            score: min((r["products"] for r in mine if r["errors"][score] <= row["paper"][score]), default=None)
            for score in SCORES
        }
        rows.append({**row, "products": products})
    return rows


def markdown(study: dict[str, Any]) -> str:
    """Write the study as Markdown."""
    equal = study["equal"]
    lines = ["# The same spectrum from fewer products: real blocks", "", _facts(study["machine"]), "", _INTRODUCTION]
    lines += ["", "## Products to the median error of 10 probes x 100 steps, readings of few streams", ""]
    lines += _products(equal)
    if study.get("replayed"):
        lines += ["", "## The same by the rule that stops the job, replayed on kept streams", ""]
        lines += _products(end_to_end(study["replayed"], equal))
        lines += ["", f"## tolerance={DEFAULT:g}: what it spends and whether it is kept", "", *_kept(study["replayed"])]
    if study.get("called"):
        lines += ["", "## `slq` called with a tolerance and nothing else", "", *_called(study["called"], equal)]
    if study.get("bars"):
        lines += ["", "## Coverage of 95 % bars, mean over blocks [worst]; (b) marks bounds", "", *_bars(study["bars"])]
    return "\n".join(lines) + "\n"


_INTRODUCTION = (
    "Errors: Wasserstein-1 in standard deviations of the eigenvalues; mean error of the Jensen-Shannon divergences of "
    "the estimate with the true spectra of the network's other blocks; mean absolute log10 ratio of densities smoothed "
    "by 0.01 and 0.003 of the range; trace over Frobenius norm. The truth of a block marked e is all its eigenvalues "
    "(dense, float64), of others what 3 x 200 steps of other probes say. A dash: not reached with 500 products."
)


def _facts(machine: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _block(row: Row) -> list[str]:
    return [row["network"], row["block"], f"{row['numel']:,}{' e' if row.get('exact') else ''}"]


def _products(rows: list[Row]) -> list[str]:
    def cells(row: Row) -> list[str]:
        return [f"{row['products'][s]:g}" if row["products"][s] else "-" for s in SCORES]

    lines = _table(["network", "block", "n", *SCORES], ([*_block(row), *cells(row)] for row in rows))
    found = medians(rows, lambda row, score: ratio(row["products"][score]))
    classes = [[name, *(f"{found[name][s]:.1f}" for s in SCORES)] for name in CLASSES]
    return [*lines, "", *_table(["median times fewer, n", *SCORES], classes)]


def _kept(rows: list[Row]) -> list[str]:
    def cells(row: Row) -> list[str]:
        w1 = f"{row['errors']['w1']:.4f}"
        return [*_block(row), f"{row['products']:g}", w1, f"{row['kept']}/{row['reached']} of {row['starts']}"]

    head = ["network", "block", "n", "products", "true W1 / sd", "kept / reached"]
    lines = _table(head, (cells(row) for row in rows if row["tolerance"] == DEFAULT))
    lines.append("")
    by_tolerance = []
    for tolerance in sorted({row["tolerance"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["tolerance"] == tolerance]
        reached, starts = sum(r["reached"] for r in mine), sum(r["starts"] for r in mine)
        share = sum(r["kept"] for r in mine) / max(reached, 1)
        worst = min((r["kept"] / r["reached"] for r in mine if r["reached"]), default=float("nan"))
        by_tolerance.append([f"{tolerance:g}", f"{reached / starts:.2f}", f"{share:.3f}", f"{worst:.2f}"])
    return lines + _table(["tolerance", "reached", "kept where reached", "worst block"], by_tolerance)


def _called(rows: list[Row], equal: list[Row]) -> list[str]:
    paper = {(row["network"], row["block"]): row["paper"] for row in equal}

    def cells(row: Row) -> list[str]:
        theirs = paper[row["network"], row["block"]]
        errors = [f"{row['errors'][s]:.2g} ({theirs[s]:.2g})" for s in SCORES]
        return [*_block(row), f"{row['tolerance']:g}", str(row["seed"]), str(row["products"]), *errors]

    head = ["network", "block", "n", "tolerance", "seed", "products", *(f"{s} (10 x 100)" for s in SCORES)]
    return _table(head, (cells(row) for row in rows))


def _bars(rows: list[Row]) -> list[str]:
    """Mean and worst coverage by bar, a column for each setting."""
    settings = list(dict.fromkeys(tuple(row["setting"]) for row in rows))
    names = list(dict.fromkeys(name for row in rows for name in row["held"]))
    bounds = {name for row in rows for name in row["bound"]}

    def cell(name: str, setting: tuple[int, ...]) -> str:
        mine = [row for row in rows if tuple(row["setting"]) == setting and name in row["held"]]
        if not mine:
            return "-"
        worst = min(mine, key=lambda row: row["held"][name])
        mean = statistics.fmean(row["held"][name] for row in mine)
        return f"{mean:.3f} [{worst['held'][name]:.2f} {worst['network']} {worst['block']}]"

    head = ["bar", *(f"{m} steps, {s} singles, {p} probes" for m, s, p in settings)]
    cells = ([name + (" (b)" if name in bounds else ""), *(cell(name, s) for s in settings)] for name in names)
    return _table(head, cells)
