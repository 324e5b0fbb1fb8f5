"""Plans of the zoo: what a plan counts is proportional to the work, and an entry without a sketch is a mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_entries import CLASSES, SIDE, entry, setting

from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra


def sketch() -> tuple[Any, int]:
    return (torch.empty(8, SIDE, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")), 4


def test_spectra_cost_by_runs_and_a_training_by_its_samples(tmp_path: Path) -> None:
    toy = entry(sketch=sketch)
    one, three = (planned_spectra(setting(tmp_path), toy, runs) for runs in (1, 3))
    assert three.flop == 3 * one.flop > 0 and three.hours["A100"] == pytest.approx(3 * one.hours["A100"])
    trained = planned_curves(setting(tmp_path), toy)
    longer = planned_curves(setting(tmp_path), replace(toy, recipe=replace(toy.recipe, steps=40)))
    assert longer.flop == pytest.approx(2 * trained.flop)
    linear = 2 * 16 * (SIDE * 8 + 8 * CLASSES)  # a forward pass of a batch
    assert 2.0 < trained.flop / (6 * 20 * linear) < 4.0  # two rates and one more seed, for both optimizers


def test_trainings_with_one_optimizer_are_named_by_it(tmp_path: Path) -> None:
    found = [planned_curves(setting(tmp_path), entry(sketch=sketch), names) for names in (("adam",), ("sgd", "adam"))]
    assert [part.what for part in found] == [
        "trainings of toy with adam, 3 of them", "trainings of toy with sgd and adam, 6 of them",
    ]  # fmt: skip


def test_an_entry_without_a_sketch_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="toy has no sketch"):
        planned_spectra(setting(tmp_path), entry(), 1)
