"""What a SpectrumLogger cannot measure with is refused before the first step that is due, not hours later."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainings import LOSS, OPTIONS, PROBE, network

from hvp_engine.errors import (
    BlockError,
    ConfigurationError,
    HvpEngineError,
    NonDeterministicError,
    ObjectiveError,
    RunFolderError,
)
from hvp_engine.integrations import SpectrumLogger

LATE: dict[str, Any] = {**OPTIONS, "every": [1000]}


@pytest.mark.parametrize(
    "options",
    [
        {"probes": 0},
        {"precision": "fp16"},
        {"operator": "ggnn"},
        {"basis": "fp33"},
        {"microbatch": 0},
        {"tolerance": {"foo": 1}},
        {"memory": -1},
        {"seed": 0.5},
    ],
)
def test_an_option_that_is_none_of_its_values_is_refused_by_the_constructor(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SpectrumLogger(None, LOSS, PROBE, **LATE | options)


def test_sharing_a_measurement_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match="the first process measures alone"):
        SpectrumLogger(None, LOSS, PROBE, distributed="auto", **LATE)


@pytest.mark.parametrize("data", [[], PROBE[0], iter(PROBE), (batch for batch in PROBE)])
def test_data_that_cannot_be_read_at_every_step_is_refused_by_the_constructor(data: Any) -> None:
    with pytest.raises(ObjectiveError, match="data is"):
        SpectrumLogger(None, LOSS, data, **LATE)


def test_what_is_no_loss_is_refused_by_the_constructor() -> None:
    with pytest.raises(ConfigurationError, match="criterion"):
        SpectrumLogger(None, nn.CrossEntropyLoss(), PROBE, **LATE)


def test_a_folder_that_cannot_be_written_is_refused_by_the_constructor(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        SpectrumLogger(None, LOSS, PROBE, out=tmp_path / "file", **LATE)


def test_a_process_that_torchrun_made_another_than_the_first_proves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    SpectrumLogger(None, LOSS, PROBE, out=tmp_path / "spectra", **LATE)
    assert not (tmp_path / "spectra").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"blocks": "parametr"}, BlockError),
        ({"blocks": {"head": ["nothing.*"]}}, BlockError),
        ({"mode": "as it is"}, NonDeterministicError),
        ({"tolerance": {"js": 0.1}, "steps": None, "probes": None}, ConfigurationError),
    ],
)
def test_what_does_not_suit_the_model_is_refused_by_the_first_call(
    options: dict[str, Any], error: type[HvpEngineError]
) -> None:
    logger = SpectrumLogger(None, LOSS, PROBE, **LATE | options)
    assert logger.step(0) is None  # there is no model yet
    logger.model = network()
    with pytest.raises(error):
        logger.step(1)


def test_a_lazy_network_is_looked_at_once_it_has_run() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))
    logger = SpectrumLogger(model, LOSS, PROBE, blocks=["1.wait"], **LATE)
    assert logger.step(0) is None
    model(PROBE[0][0])
    with pytest.raises(BlockError, match="1.wait"):
        logger.step(1)


@pytest.mark.parametrize("optimizer", [nn.Linear(2, 2), "adam"])
def test_what_is_no_optimiser_is_refused_by_the_first_call(optimizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="no param_groups"):
        SpectrumLogger(network(), LOSS, PROBE, **LATE).step(0, optimizer)


def test_a_later_failure_of_any_kind_is_told_and_the_training_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = SpectrumLogger(network(), LOSS, PROBE, every=1, steps=4)
    assert logger.step(0) is not None

    def gone(*_: object) -> None:
        raise TypeError("float() argument must be a string")

    monkeypatch.setattr(logger._measurement, "take", gone)
    with caplog.at_level(logging.WARNING):
        assert logger.step(1) is None
    assert "Step 1 was not measured: TypeError: float() argument must be a string." in caplog.messages[-1]
    assert caplog.records[-1].exc_info is not None
    monkeypatch.undo()
    assert logger.step(2) is not None


@pytest.mark.parametrize("rate", [None, "fast", torch.tensor([0.1, 0.2])])
def test_an_optimiser_without_a_rate_of_its_own_has_no_edge(rate: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["lr"] = rate
    found = SpectrumLogger(model, LOSS, PROBE, **OPTIONS).step(0, optimizer)
    assert found is not None and "hessian/two_over_lr" not in found
