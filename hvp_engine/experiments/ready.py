"""Whether all that a driver reads is there, asked before it computes for hours."""

from __future__ import annotations

from collections.abc import Iterable

from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.zoo import entry_of


def ready(setting: Setting, models: Iterable[str | Entry]) -> None:
    """Read the data of all models of a driver, and make the networks without their weights.

    The last of ten models would otherwise miss its data, or a package, after nine were trained.

    Raises:
        ConfigurationError: Data or a package is missing, or data are not what they should be.
    """
    for entry in (entry_of(setting, model) for model in models):
        entry.meta()
        entry.data(0)
