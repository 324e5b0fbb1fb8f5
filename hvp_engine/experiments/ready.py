"""Whether all that a driver reads is there, asked before it computes for hours."""

from __future__ import annotations

from collections.abc import Iterable

from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.zoo import entry_of


def ready(setting: Setting, models: Iterable[str | Entry]) -> None:
    """Make the networks of a driver without their weights, and read the data of all of them.

    The last of ten models would otherwise miss its data, or a package, after nine were trained.

    Raises:
        ConfigurationError: Data or a package is missing, or data are not what they should be.
    """
    entries = [entry_of(setting, model) for model in models]
    for entry in entries:
        entry.meta()
    for entry in entries:
        entry.data(0)
