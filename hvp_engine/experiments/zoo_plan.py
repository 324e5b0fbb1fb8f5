"""What the spectra and trainings of the zoo's models cost at the paper's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hvp_engine.blocks import BlockSpec
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.paper_plan import PlannedPart, counted_training, planned_slq
from hvp_engine.experiments.registry import Setting


def planned_spectra(
    setting: Setting,
    entry: Entry,
    runs: int,
    blocks: BlockSpec = None,
    what: str = "",
    steps: int = 100,
    probes: int = 10,
) -> PlannedPart:
    """Plan the blockwise spectra of a model, or with fewer steps and probes less than them.

    Args:
        setting: Precision.
        entry: The model, which has a sketch of its data.
        runs: How many: stages times seeds.
        blocks: Other blocks than the entry's.
        what: In words; empty names the model.
        steps: Lanczos steps.
        probes: Random vectors per block.
    """
    batch, batches = _sketched(entry)
    return planned_slq(
        what or f"spectra of {entry.name}, {runs} of them", entry.meta(), entry.loss, blocks or entry.blocks, [batch],
        steps=steps, probes=probes, precision=setting.precision, batches=batches, runs=runs,
    )  # fmt: skip


def planned_curves(setting: Setting, entry: Entry, optimizers: Sequence[str] = ("sgd", "adam")) -> PlannedPart:
    """Plan the search for the best learning rate of each optimizer with one seed, and its runs with the other seeds."""
    batch, _ = _sketched(entry)
    trainings = sum(len(entry.rates[optimizer]) + setting.seeds - 1 for optimizer in optimizers)
    passes = trainings * entry.recipe.steps * entry.recipe.batch / _samples(batch)
    named = " and ".join(filter(None, (", ".join(optimizers[:-1]), optimizers[-1])))
    what = f"trainings of {entry.name} with {named}, {trainings} of them"
    return counted_training(what, entry.meta(), entry.loss, batch, passes, precision=setting.precision)


def _sketched(entry: Entry) -> tuple[Any, int]:
    if entry.sketch is None:
        raise ValueError(f"Entry {entry.name} has no sketch of its data.")  # a driver's mistake
    return entry.sketch()


def _samples(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    return _samples(next(iter(batch.values() if isinstance(batch, dict) else batch)))
