"""BatchNorm's statistics are those of the data after a calibration."""

from __future__ import annotations

import torch
from torch import nn

from hvp_engine import losses
from hvp_engine.experiments.calibration import calibrate
from hvp_engine.experiments.models.vision import ResNet


def test_running_statistics_become_the_mean_of_the_batches_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].running_mean.fill_(9.0)
    batches = [(torch.randn(16, 4, generator=generator) * 3 + 2, torch.zeros(16, dtype=torch.int64)) for _ in range(3)]
    assert calibrate(model, losses.classification, batches) is model
    expected = torch.stack([inputs.mean(0) for inputs, _ in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, expected)
    torch.testing.assert_close(model[0].running_var, torch.stack([x.var(0) for x, _ in batches]).mean(0))
    assert model[0].momentum == 0.1
    assert not model.training


def test_a_calibrated_resnet_in_eval_mode_computes_what_it_computes_in_training_mode() -> None:
    torch.manual_seed(0)
    model = ResNet((8, 16), 3, channels=1)
    inputs, labels = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    before = model.eval()(inputs)
    calibrate(model, losses.classification, [(inputs, labels)])
    after = model(inputs)
    with torch.no_grad():
        trained = model.train()(inputs)
    assert not torch.allclose(before, after, rtol=0.2)
    torch.testing.assert_close(after, trained, rtol=0.05, atol=0.02)  # the unbiased variance, n / (n - 1)
