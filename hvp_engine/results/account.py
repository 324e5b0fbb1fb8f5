"""What each block's numbers cost, and what ended them: the account that an adaptive job leaves in its manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hvp_engine.errors import printable
from hvp_engine.results.spectrum import Spectrum

ASKED, EXACT = "asked", "exact"
_LONGEST, _MOST = 20, 8  # characters of a name in a table; names of targets


@dataclass(frozen=True)
class Account:
    """The work on one block.

    Attributes:
        steps: Fewest and most Lanczos steps of its probes.
        probes: Streams.
        singles: Single products beside them.
        products: All of its products with the Hessian.
        ceiling: Products at the ceilings of steps and probes; None for a job that did what was asked.
        stopped_by: The rule that ended it.
        missed: What was not reached: the error, and the target, by the target's name.
    """

    steps: tuple[int, int]
    probes: int
    singles: int
    products: int
    ceiling: int | None
    stopped_by: str
    missed: Mapping[str, tuple[float, float]]

    @property
    def shape(self) -> str:
        """Steps times probes, and single products: ``45 x 1 + 4``."""
        if self.stopped_by == EXACT:
            return EXACT
        fewest, most = self.steps
        streams = f"{most if fewest == most else f'{fewest}–{most}'} x {self.probes}"
        return f"{streams} + {self.singles}" if self.singles else streams


def accounts(spectra: Iterable[Spectrum], manifest: Mapping[str, Any]) -> dict[str, Account]:
    """Read the account of every block, by name.

    Args:
        spectra: The spectra.
        manifest: The facts of their run, a stranger's perhaps: what is no account is left out.
    """
    adaptive = _mapping(manifest.get("adaptive"))
    blocks, targets = _mapping(adaptive.get("blocks")), _mapping(adaptive.get("targets"))
    return {spectrum.name: _account(spectrum, _mapping(blocks.get(spectrum.name)), targets) for spectrum in spectra}


def _account(spectrum: Spectrum, block: Mapping[str, Any], targets: Mapping[str, Any]) -> Account:
    own = int(spectrum.steps.sum()) + len(spectrum.singles)
    errors = _mapping(block.get("errors"))
    missed = block.get("not_reached")
    return Account(
        steps=(int(spectrum.steps.min()), int(spectrum.steps.max())),
        probes=spectrum.probes,
        singles=len(spectrum.singles),
        products=_count(block.get("products")) or own,
        ceiling=_count(block.get("ceiling")),
        stopped_by=_word(block.get("stopped_by", ASKED)),
        missed={
            _word(name): (_number(errors.get(name)), _number(targets.get(name)))
            for name in (missed[:_MOST] if isinstance(missed, (list, tuple)) else ())
            if isinstance(name, str)
        },
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: object) -> str:
    """Return what may be a stranger's text as a word that can be printed."""
    return printable(str(value)[:_LONGEST])[:_LONGEST]


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
