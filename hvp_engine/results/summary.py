"""The numbers of a run in one place: what tables print, and what programs read as JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hvp_engine.results.account import Account, accounts
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.record import OF_A_BLOCK, plain
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.tabular import Row, flat
from hvp_engine.results.words import matrix_of

NUMBERS = (*OF_A_BLOCK, "js0")


@dataclass(frozen=True)
class BlockSummary:
    """What is said of one block.

    Attributes:
        name: Its name.
        numel: Its number of parameters.
        numbers: Its estimates, by the names of ``NUMBERS``; ``js0`` is the mean distance to the other blocks.
        zero: Whether its curvature is zero to rounding, so that it has no distances.
        account: What it cost.
    """

    name: str
    numel: int
    numbers: Mapping[str, Estimate]
    zero: bool
    account: Account


@dataclass(frozen=True)
class Summary:
    """What is said of a run.

    Attributes:
        blocks: Its blocks, in their order.
        js0: Mean distance over distinct pairs of blocks, those of zero curvature left out.
        matrix: Whose spectra they are, in words; None for the Hessian.
    """

    blocks: tuple[BlockSummary, ...]
    js0: Estimate
    matrix: str | None = None

    @property
    def zero_blocks(self) -> list[str]:
        """Names of the blocks without curvature."""
        return [block.name for block in self.blocks if block.zero]

    def readings(self) -> dict[str, list[str]]:
        """List the readings by which each kind of ``NUMBERS`` was made, but for exact blocks."""
        return {
            kind: sorted({e.reading for b in self.blocks if not math.isnan((e := b.numbers[kind]).value)} - {"exact"})
            for kind in NUMBERS
        }

    def record(self) -> dict[str, Any]:
        """Return everything as plain data; bars that there are not, and numbers, are None."""
        return {
            **({} if self.matrix is None else {"matrix": self.matrix}),
            "js0": plain(self.js0),
            "blocks": [
                {
                    "name": block.name,
                    "numel": block.numel,
                    **{kind: plain(estimate) for kind, estimate in block.numbers.items()},
                    "zero_curvature": block.zero,
                    "steps": list(block.account.steps),
                    "probes": block.account.probes,
                    "singles": block.account.singles,
                    "products": block.account.products,
                    "products_at_ceilings": block.account.ceiling,
                    "stopped_by": block.account.stopped_by,
                    "not_reached": {
                        name: {"error": _or_none(error), "target": _or_none(target)}
                        for name, (error, target) in block.account.missed.items()
                    },
                }
                for block in self.blocks
            ],
        }

    def rows(self) -> list[Row]:
        """Return the same as rows: the range of the steps in two columns, names of what was not reached in one."""
        return [
            {
                **flat({key: value for key, value in entry.items() if key != "not_reached"}),
                "steps_fewest": entry["steps"][0],
                "steps_most": entry["steps"][1],
                "not_reached": " ".join(entry["not_reached"]),
            }
            for entry in self.record()["blocks"]
        ]


def summarize(
    spectra: Mapping[str, Spectrum],
    to_others: Mapping[str, Estimate],
    js0: Estimate,
    zero_blocks: Collection[str],
    manifest: Mapping[str, Any],
) -> Summary:
    """Gather the numbers of all blocks.

    Args:
        spectra: One or more spectra.
        to_others: The mean Jensen-Shannon distance of each to the others, by name.
        js0: The mean over pairs.
        zero_blocks: Names of the blocks of zero curvature.
        manifest: The facts of the run.
    """
    spent = accounts(spectra.values(), manifest)
    return Summary(
        tuple(
            BlockSummary(
                name=name,
                numel=spectrum.numel,
                numbers={**{key: number(spectrum) for key, number in OF_A_BLOCK.items()}, "js0": to_others[name]},
                zero=name in zero_blocks,
                account=spent[name],
            )
            for name, spectrum in spectra.items()
        ),
        js0,
        matrix_of(manifest.get("config")),
    )


def _or_none(value: float) -> float | None:
    """Return a number that JSON can hold."""
    return value if math.isfinite(value) else None
