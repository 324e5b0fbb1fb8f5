"""The tables of the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def markdown(found: Mapping[str, Any]) -> str:
    """Write what the study found as two tables, of bars and of stops."""
    seeds, stopped, blocks = found["seeds"], found["stopped"], found["matrices"]
    lines = [
        "# Error bars on matrices whose spectrum is known",
        "",
        f"`python -m benchmarks.coverage`: {len(blocks)} matrices, {seeds} streams each on the diagonal of the exact",
        "eigenvalues, fp64. Matrices marked * are those that the rule of stopping was first chosen on; it was changed",
        "once after a look at the others. Exactly repeated eigenvalues are what no single stream can see.",
        "",
        "## Coverage of 95 % bars",
        "",
        "Mean over the matrices [worst matrix]; (b) marks bounds, which may hold more often than 95 %.",
        "",
    ]
    lines += _bars(found["settings"], blocks)
    for tolerance in map(str, found["tolerances"]):
        lines += [
            "",
            f"## {stopped} blocks of each matrix that stop by tolerance={tolerance}",
            "",
            *_stops(tolerance, blocks, stopped),
        ]
    return "\n".join(lines) + "\n"


def _bars(settings: list[tuple[int, int, int]], blocks: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for block in blocks for bars in block["bars"].values() for name in bars)
    heads = [f"{m} steps, {s} single products, {p} probe{'s' * (p > 1)}" for m, s, p in settings]
    lines = ["| bar | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        cells, bound = [], False
        for m, s, p in settings:
            held = {
                block["name"]: block["bars"][f"{m},{s},{p}"][name]["held"]
                for block in blocks
                if name in block["bars"][f"{m},{s},{p}"]
            }
            bound = bound or any(
                bars[name]["bound"] for block in blocks for bars in block["bars"].values() if name in bars
            )
            worst = min(held, key=lambda block: held[block], default="")
            cells.append(f"{np.mean(list(held.values())):.3f} [{held[worst]:.2f} {worst}]" if held else "-")
        lines.append(f"| {name}{' (b)' if bound else ''} | " + " | ".join(cells) + " |")
    return lines


def _stops(tolerance: str, blocks: list[dict[str, Any]], stopped: int) -> list[str]:
    lines = [
        "| matrix | reached | of these kept | worst error / tolerance | steps | probes | products | error | 10 x 100 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shares = []
    for block in blocks:
        stop = block["stops"][tolerance]
        share = stop["kept"] / stop["reached"] if stop["reached"] else float("nan")
        shares.append(share)
        name = block["name"] + (" *" if block["chosen_on"] else "")
        lines.append(
            f"| {name} | {stop['reached'] / stopped:.2f} | {share:.3f} | {stop['worst'] / float(tolerance):.2f} "
            f"| {stop['steps']:.0f} | {stop['probes']:.0f} | {stop['products']:.0f} | {stop['error']:.4f} "
            f"| {block['fixed']:.4f} |"
        )
    lines += ["", f"Kept on average: {np.nanmean(shares):.3f}. 10 x 100 is the error of a thousand products by Gauss."]
    return lines
