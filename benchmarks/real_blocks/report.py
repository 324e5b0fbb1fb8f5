"""The committed table of the study, from its rows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .adaptive import MOST_PROBES, STARTS
from .equal_error import PAPER_PRODUCTS
from .scores import SCORES
from .streams import STEPS
from .zoo import NETWORKS

Row = dict[str, Any]
CLASSES = {"1k to 10k": (1_000, 10_000), "100k and more": (100_000, 1 << 40)}


def in_class(row: Row, name: str) -> bool:
    """Say whether a row's block is in a class of sizes."""
    low, high = CLASSES[name]
    return low <= row["numel"] < high


def ratio(products: float | None) -> float:
    """Return how many times fewer products than the paper's; 0 where its error was not reached."""
    return PAPER_PRODUCTS / products if products else 0.0


def doubtful(row: Row, score: str) -> bool:
    """Say whether a block's reference is off by chance by more than half of the error that is to be reached."""
    return bool(row["doubt"][score] > 0.5 * row["paper"][score])


def median_ratio(rows: Iterable[Row], size: str, score: str, every: bool) -> str:
    """Return the median over the blocks of a class of sizes, and of how many: all, or those that are not doubtful."""
    mine = [row for row in rows if in_class(row, size) and (every or not doubtful(row, score))]
    return f"{statistics.median(ratio(row['products'][score]) for row in mine):.1f} ({len(mine)})" if mine else "-"


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
    lines += ["", _scope(study)]
    lines += ["", "## Products to the median error of 10 probes x 100 steps, readings of few streams", ""]
    lines += _products(equal)
    if study.get("replayed"):
        lines += ["", "## The same by the rule that stops the job, replayed on kept streams", ""]
        lines += _products(end_to_end(study["replayed"], equal))
        lines += ["", "## What a tolerance spends and whether it is kept, replayed on kept streams", "", _REPLAYED, ""]
        lines += _kept(study["replayed"])
    if study.get("called"):
        lines += ["", "## `slq` called with a tolerance and nothing else", "", _CALLED, ""]
        lines += _called(study["called"], equal)
    if study.get("bars"):
        lines += ["", "## Coverage of 95 % bars, mean over blocks [worst]; (b) marks bounds", "", *_bars(study["bars"])]
    return "\n".join(lines) + "\n"


_INTRODUCTION = (
    "Errors: `w1` Wasserstein-1 in standard deviations of the eigenvalues; `js` mean error of the Jensen-Shannon "
    "divergences of the estimate with the true spectra of the network's other blocks; `density` mean absolute log10 "
    "ratio of densities smoothed by 0.01 and 0.003 of the range; `trace` over the Frobenius norm. Medians over groups "
    "of probes; of all splits of so many products into probes and steps the first that does is taken, which hindsight "
    "alone can. A dash: not reached with 500 products, or in the second table at no tolerance of those replayed, which "
    "counts as 0 in medians.\n\n"
    "Reference `exact`: all eigenvalues (products in float64 with every unit vector); estimates are streams in the "
    "eigenbasis, float64, and only the calls at the end are products of the network. Reference `p x m`: what p other "
    "probes of m steps say, in float32 (10 x 200 is asked for, 3 x 200 was made where time was short); estimates are "
    "streams of real products, ten probes, so that the error of 10 x 100 is that of one group, of which ours are "
    "parts. Such a reference is no truth: in a cell marked ? its own error by chance (a jackknife over its probes) is "
    "above half of the error that is to be reached, so that the cell says little; W1 there also leaves out what more "
    "than m steps would change, and whether a tolerance was kept is judged by this reference only."
)
_REPLAYED = (
    "By tolerance: median products; median true W1 / sd; starts that kept the tolerance / that said it was reached, "
    f"of {STARTS} starts. Ceilings as by default, {STEPS} steps and {MOST_PROBES} probes; without single products."
)
_CALLED = (
    "Real products in float32 of the blocks whose eigenvalues are all known, one call for a network and seed, as users "
    "make it; a number for each seed; products as the manifest accounts for them, single ones too. In brackets the "
    "median error of 10 x 100 Gauss. `off`: how far off trace and norm are in lengths of their bars; within 1 the bar "
    "holds. The trace is the published one, with single products; W1 and JS are of the streams, as published too."
)


def _scope(study: dict[str, Any]) -> str:
    """Say what there is, and what was left out."""
    done = {(row["network"], row["block"]): row for row in study["equal"]}
    missing = [f"{net.name} {block}" for net in NETWORKS for block in net.blocks if (net.name, block) not in done]
    counts = Counter(row["reference"] for row in done.values())
    text = f"{len(done)} blocks; references: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()) + "."
    return text + (f" Left out, for want of a reference: {', '.join(missing)}." if missing else "")


def _facts(machine: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _block(row: Row) -> list[str]:
    return [row["network"], row["block"], f"{row['numel']:,}"]


def _products(rows: list[Row]) -> list[str]:
    def cell(row: Row, score: str) -> str:
        products = f"{row['products'][score]:g}" if row["products"][score] else "-"
        return products + (" ?" if doubtful(row, score) else "")

    lines = _table(
        ["network", "block", "n", "reference", *SCORES],
        ([*_block(row), row["reference"], *(cell(row, score) for score in SCORES)] for row in rows),
    )
    classes = [
        [f"{size}, {'all' if every else 'without ?'}", *(median_ratio(rows, size, score, every) for score in SCORES)]
        for size in CLASSES
        for every in (True, False)
    ]
    return [*lines, "", *_table(["median times fewer (blocks), n", *SCORES], classes)]


def _kept(rows: list[Row]) -> list[str]:
    tolerances = sorted({row["tolerance"] for row in rows}, reverse=True)
    blocks: dict[tuple[str, ...], dict[float, Row]] = {}
    for row in rows:
        blocks.setdefault(tuple(_block(row)), {})[row["tolerance"]] = row

    def cell(row: Row) -> str:
        return f"{row['products']:g}; {row['errors']['w1']:.4f}; {row['kept']}/{row['reached']}"

    head = ["network", "block", "n", *(f"{tolerance:g}" for tolerance in tolerances)]
    lines = _table(head, ([*block, *(cell(mine[t]) for t in tolerances)] for block, mine in blocks.items()))
    lines.append("")
    by_tolerance = []
    for tolerance in tolerances:
        mine = [row for row in rows if row["tolerance"] == tolerance]
        reached, starts = sum(r["reached"] for r in mine), sum(r["starts"] for r in mine)
        share = sum(r["kept"] for r in mine) / max(reached, 1)
        worst = min((r["kept"] / r["reached"] for r in mine if r["reached"]), default=float("nan"))
        by_tolerance.append([f"{tolerance:g}", f"{reached / starts:.2f}", f"{share:.3f}", f"{worst:.2f}"])
    return lines + _table(["tolerance", "reached", "kept where reached", "worst block"], by_tolerance)


def _called(rows: list[Row], equal: list[Row]) -> list[str]:
    paper = {(row["network"], row["block"]): row["paper"] for row in equal}
    jobs: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        jobs.setdefault((*_block(row), f"{row['tolerance']:g}"), []).append(row)

    def cells(mine: list[Row]) -> list[str]:
        theirs = paper[mine[0]["network"], mine[0]["block"]]
        ends = [row["stopped_by"] for row in mine]
        ended = ", ".join(f"{end} {count}" for end, count in Counter(ends).items())
        scored = [
            " / ".join(f"{row['errors'][score]:.2g}" for row in mine) + f" ({theirs[score]:.2g})"
            for score in ("w1", "js", "trace")
        ]
        off = [" / ".join(f"{row['off'][name]:.2f}" for row in mine) for name in ("trace", "norm")]
        return [" / ".join(str(row["products"]) for row in mine), ended, *scored, *off]

    head = ["network", "block", "n", "tolerance", "products", "ended by"]
    head += ["w1 (10 x 100)", "js (10 x 100)", "trace (10 x 100)", "trace off", "norm off"]
    return [*_table(head, ([*job, *cells(mine)] for job, mine in jobs.items())), "", *_called_in_short(rows)]


def _called_in_short(rows: list[Row]) -> list[str]:
    lines = []
    for tolerance in sorted({row["tolerance"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["tolerance"] == tolerance]
        reached = [row for row in mine if row["reached"]]
        kept = f"{sum(row['errors']['w1'] <= tolerance for row in reached)}/{len(reached)}"
        held = [f"{sum(row['off'][name] <= 1.0 for row in mine)}/{len(mine)}" for name in ("trace", "norm")]
        products = statistics.median(row["products"] for row in mine)
        lines.append([f"{tolerance:g}", f"{len(reached)}/{len(mine)}", kept, *held, f"{products:g}"])
    head = ["tolerance", "reached", "kept where reached", "trace inside", "norm inside", "median products"]
    return _table(head, lines)


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
