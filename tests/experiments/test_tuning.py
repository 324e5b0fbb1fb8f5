"""Fine-tuning kept as files: read for the same one only, whatever its files and options are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo_entries import batches, entry, setting

from hvp_engine.experiments import tuning
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.optimizers import linear
from hvp_engine.experiments.registry import Setting


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Callable[[Setting, Entry], bool]:
    """Fine-tune, and say whether anything was trained."""
    trained: list[str] = []
    original = tuning._tune

    def counted(*arguments: Any) -> tuning.Tuned:
        trained.append(arguments[2])
        return original(*arguments)

    monkeypatch.setattr(tuning, "_tune", counted)

    def tuned(asked: Setting, model: Entry) -> bool:
        before = len(trained)
        tuning.tuned(asked, model, "adam", 0.01, 0, tested=True)
        return len(trained) > before

    return tuned


def permuted(seed: int) -> Batches:
    found = batches(seed)
    return replace(found, training=lambda: ((x, labels.flip(0)) for x, labels in found.training()))


def test_what_was_tuned_is_read_for_the_same_contents_wherever_they_are(
    tmp_path: Path, tune: Callable[[Setting, Entry], bool]
) -> None:
    assert tune(setting(tmp_path), entry())
    assert not tune(setting(tmp_path), entry())
    assert not tune(setting(tmp_path, weights={"minilm": Path("moved")}, data={"tweets": Path("moved")}), entry())


@pytest.mark.parametrize(
    "changes",
    [
        {"data": permuted},
        {"data": lambda seed: replace(batches(seed), source={"digest": "of another text"})},
        {"recipe": replace(entry().recipe, schedule=linear)},
        {"build": lambda seed: entry().build(seed + 1)},
    ],
    ids=["labels", "text", "schedule", "weights"],
)
def test_other_data_weights_or_another_schedule_are_tuned_anew(
    changes: dict[str, Any], tmp_path: Path, tune: Callable[[Setting, Entry], bool]
) -> None:
    tune(setting(tmp_path), entry())
    assert tune(setting(tmp_path), replace(entry(), **changes))


class Elsewhere(torch.Tensor):
    """A tensor whose numbers are on another device, as far as NumPy is concerned."""

    def cpu(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class OnDevice(nn.Linear):
    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {name: value.as_subclass(Elsewhere) for name, value in super().state_dict().items()}


def test_a_start_on_another_device_has_the_digest_of_the_same_numbers() -> None:
    here, there = (replace(entry(), build=lambda seed, made=made: filled(made(2, 2))) for made in (nn.Linear, OnDevice))
    assert here.contents(0) == there.contents(0)


def filled(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model
