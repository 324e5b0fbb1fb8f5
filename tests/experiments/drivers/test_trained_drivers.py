"""F3 to F6 at tiny size: files and tables; what is exact; and each gate against numbers that violate it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hvp_engine.experiments import class_rows, full_batch
from hvp_engine.experiments.data.samples import Samples
from hvp_engine.experiments.drivers import class_structure, edge_of_stability, outliers, sharpness_disparity
from hvp_engine.experiments.optimizers import make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result
from hvp_engine.experiments.zoo import zoo

Run = Callable[[str], Result]


def test_f3_gives_the_sharpness_of_every_kind_at_every_stage(run_tiny: Run) -> None:
    result = run_tiny("sharpness-disparity")
    assert [row[0] for row in result.table.rows] == ["Emb", "QK", "FFN", "VO", "Norm"]
    assert len(result.table.columns) == 5 and len(result.claims[0].values) == 1


def test_f3_puts_every_parameter_but_positions_in_one_kind(tmp_path: Path) -> None:
    model = zoo(Setting("tiny", 1, tmp_path))["gpt"].meta()
    placed = [name for names in sharpness_disparity.kinds(model).values() for name in names]
    assert sorted([*placed, "wpe.weight"]) == sorted(name for name, _ in model.named_parameters())


def test_f3_fails_where_a_feedforward_layer_is_as_sharp_as_the_norms() -> None:
    sharp = {"Emb": 1.0, "QK": 1.0, "FFN": 1.0, "VO": 2.0, "Norm": 2.0}
    assert sharpness_disparity.claims([sharp])[0].holds
    assert not sharpness_disparity.claims([sharp, {**sharp, "FFN": 1.5}])[0].holds


def test_f4_follows_both_optimizers_from_their_first_step(run_tiny: Run) -> None:
    result = run_tiny("edge-of-stability")
    rows = {row[:2]: row[2:] for row in result.table.rows}
    assert set(rows) == {("gradient descent", 0.1), ("gradient descent", 0.3), ("Adam", 1e-3)}
    assert rows["gradient descent", 0.3][0] == pytest.approx(3.0 * rows["gradient descent", 0.1][0], rel=1e-4)
    assert result.claims[2].holds  # the start does not depend on the number of steps


def test_f4_finds_the_largest_eigenvalue_of_the_matrix_that_each_optimizer_sees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 10)
    batch = (torch.randn(40, 3), torch.eye(10)[torch.arange(40) % 10])
    augmented = torch.cat([batch[0], torch.ones(40, 1)], dim=1)
    exact = float(torch.linalg.eigvalsh(augmented.T @ augmented / 40.0)[-1])
    setting, descent = Setting("tiny", 1, tmp_path), make_optimizer("plain-sgd", model, 0.1)
    assert full_batch.largest(model, batch, descent, setting) == pytest.approx(exact, rel=1e-3)
    adam = make_optimizer("adam", model, 1e-3)
    full_batch.squared_error(model, batch).backward()
    adam.step()
    assert full_batch.largest(model, batch, adam, setting) > 2.0 * exact  # gradients are far below 1


def test_f4_fails_where_training_leaves_the_edge() -> None:
    edge = np.array([[0.5, 0.8, 1.0, 1.1]])
    assert all(claim.holds for claim in edge_of_stability.claims({0.1: edge, 0.3: edge}))
    cases = {0: [0.5, 0.8, 0.8, 1.1], 1: [0.5, 0.8, 1.0, 1.3], 2: [0.95, 1.0, 1.0, 1.1]}
    for failing, values in cases.items():
        found = edge_of_stability.claims({0.1: np.array([values]), 0.3: edge})
        assert [claim.holds for claim in found] == [i != failing for i in range(3)]
    assert not edge_of_stability.claims({0.1: edge, 0.3: np.array([[0.5, 0.8, 1.0, np.nan]])})[0].holds


def test_f5_finds_twice_as_many_eigenvalues_as_classes(run_tiny: Run) -> None:
    result = run_tiny("outliers")
    assert [row[0] for row in result.table.rows] == [outliers.PLAIN, outliers.NORMALISED]
    assert all(row[1] >= row[2] >= row[3] for row in result.table.rows)


def test_f5_trains_networks_that_differ_in_batchnorm_only(tmp_path: Path) -> None:
    plain, normalised = (entry.meta() for entry in outliers.entries(Setting("tiny", 1, tmp_path)).values())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in normalised.modules()) == 6
    assert {name for name, _ in plain.named_parameters()} < {name for name, _ in normalised.named_parameters()}


def test_f5_fails_without_a_gap_or_where_batchnorm_changes_nothing() -> None:
    outlying = np.array([[100.0, 10.0, 9.0, 8.0]])
    flat = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert all(c.holds for c in outliers.claims({outliers.PLAIN: outlying, outliers.NORMALISED: flat}, 2))
    swapped = outliers.claims({outliers.PLAIN: flat, outliers.NORMALISED: outlying}, 2)
    assert [claim.holds for claim in swapped] == [False, False]


def test_f6_finds_the_formula_exactly(run_tiny: Run) -> None:
    result = run_tiny("class-structure")
    assert len(result.table.rows) == 6 and result.claims[1].holds
    ranks = {row[1]: row[2] for row in result.table.rows if row[0] == "digits"}
    assert ranks[class_rows.EXACT] == pytest.approx(1.0)


def test_f6_draws_classes_with_zipfs_frequencies() -> None:
    samples = Samples(torch.arange(30.0)[:, None], torch.arange(30) % 3)
    drawn = class_rows.zipf(samples, 110, 0)
    assert torch.bincount(drawn.labels).tolist() == [60, 30, 20]
    assert torch.equal(drawn.inputs[:, 0].long() % 3, drawn.labels)


def test_f6_fails_where_curvature_does_not_follow_frequency_or_the_formula() -> None:
    up, down = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
    good = class_rows.Sample(up, up, {class_rows.TRAINED: up, class_rows.EXACT: up})
    bad = class_rows.Sample(up, up, {class_rows.TRAINED: down, class_rows.EXACT: 1.01 * up})
    assert [claim.holds for claim in class_structure.claims({"digits": [good], "b": [good]})] == [True, True]
    assert [claim.holds for claim in class_structure.claims({"digits": [bad], "b": [good]})] == [False, False]
