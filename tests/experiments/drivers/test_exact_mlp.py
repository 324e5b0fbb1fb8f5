from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from problems import Case, dense_hessian

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import exact_net
from hvp_engine.experiments.drivers import exact_mlp
from hvp_engine.experiments.models.two_layer import LAYERS, TwoLayer
from hvp_engine.experiments.registry import Setting, find
from hvp_engine.system.tensor_files import read_tensors

pytest.importorskip("sklearn", reason="the digits are in scikit-learn")


def test_tiny_run_finds_each_layer_near_block_diagonal_and_writes_its_matrices(tmp_path: Path) -> None:
    setting = Setting("tiny", 1, tmp_path / "exact-mlp")
    result = exact_mlp.run(setting)
    assert result.holds, [claim.line("D2") for claim in result.claims]
    assert len(result.table.rows) == 5 * 4
    result.write(setting.out, find("exact-mlp"))
    matrix = read_tensors(setting.out / "hessian-100%.safetensors").tensors["hessian"]
    assert matrix.shape == (592, 592)
    assert torch.equal(matrix, matrix.T)


def test_the_matrix_is_that_of_the_whole_training_set() -> None:
    setting = Setting("tiny", 1, Path())
    data = exact_net.pictures(setting)
    few = data.train.take(torch.arange(40))
    net = TwoLayer(64, 3, 10, seed=1)
    found = exact_net.hessian(setting, net, type(data)(few, data.test, data.classes, data.source))
    expected = dense_hessian(Case(net, losses.classification, [few])).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


def test_a_matrix_without_blocks_has_the_share_of_random_groups() -> None:
    net = TwoLayer(16, 8, 10, seed=0)
    size = sum(parameter.numel() for parameter in net.parameters())
    matrix = np.random.default_rng(0).standard_normal((size, size))
    found = exact_net.shares(net, matrix + matrix.T)
    assert found["whole"] == pytest.approx(found["random"], rel=0.1)
    assert all(found[name] < 0.5 for name in LAYERS)


def test_the_papers_size_asks_for_the_papers_data_and_is_planned_without() -> None:
    setting = Setting("paper", 1, Path())
    with pytest.raises(ConfigurationError, match="--data mnist=DIR"):
        exact_mlp.run(setting)
    mnist, cifar = exact_mlp.plan(setting)
    assert 8 * 784 + 80 == 6352 and 8 * 3072 + 800 == 25_376  # the papers' counts of parameters
    assert cifar.flop > 5 * 25_376 * 50_000 * 2 * 25_376  # matrices, products, samples, at least a pass each
    assert cifar.bytes > 4 * 25_376**2
    assert mnist.flop < cifar.flop
