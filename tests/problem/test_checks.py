"""Models and data that cannot be a job."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import mlp
from refusals import mean_loss, one_sweep, refuse
from torch import nn

from hvp_engine.errors import ConfigurationError, NonDeterministicError


@pytest.mark.parametrize("data", [5, lambda: []])
def test_data_that_cannot_be_iterated(data: Any) -> None:
    case = mlp()
    refuse("data must be a list of batches", case.model, case.loss, data)


def test_models_without_numbers_or_without_gradients() -> None:
    case = mlp()
    refuse("meta", mlp().model.to("meta"), case.loss, case.data, ConfigurationError)
    with torch.inference_mode():
        frozen = mlp().model
    refuse("inference_mode", frozen, case.loss, case.data, ConfigurationError)


def test_empty_data_and_data_that_can_be_read_once() -> None:
    case = mlp()
    refuse("data is empty", case.model, mean_loss, [])
    refuse("only once", case.model, mean_loss, (batch for batch in case.data))


def test_a_single_batch_or_a_batch_without_tensors_as_data() -> None:
    case = mlp()
    refuse("data is a single batch", case.model, mean_loss, case.data[0][0])
    refuse("data is a single batch", case.model, mean_loss, {"x": case.data[0][0]})
    refuse("Batch 0, of type list, has no tensors", case.model, mean_loss, [[1.0, 2.0]])


def test_batchnorm_in_train_mode_is_named() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    refuse("BatchNorm is in train mode in 1", model, mean_loss, mlp().data, NonDeterministicError)
    one_sweep(model.eval(), mean_loss, mlp().data)
