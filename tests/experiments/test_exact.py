from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import hvp_engine as he
from hvp_engine.experiments import exact
from hvp_engine.experiments.heterogeneity import energy_share


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))


def test_positions_are_where_blocks_stand_in_the_vector_of_several_parameters(net: nn.Sequential) -> None:
    names = ["2.weight", "0.weight"]
    vector = torch.cat([net.get_parameter(name).detach().flatten() for name in names]).numpy()
    pieces = [*he.blocks.rows(net, "0.weight"), he.Block("columns", [("2.weight", (slice(None), slice(1, 3)))])]
    found = exact.positions(net, names, pieces)
    for row in range(4):
        np.testing.assert_array_equal(vector[found[row]], net[0].weight[row].detach().numpy())
    np.testing.assert_array_equal(vector[found[4]], net[2].weight[:, 1:3].flatten().detach().numpy())


def test_the_random_share_is_the_mean_over_random_partitions_of_these_sizes() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((12, 12))
    matrix += matrix.T + 3.0 * np.eye(12)
    groups = np.split(np.arange(12), [2, 5, 6])
    drawn = []
    for _ in range(4000):
        order = generator.permutation(12)
        drawn.append(energy_share(matrix, [order[group] for group in groups]))
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(exact.random_energy_share(matrix, groups) - np.mean(drawn)) < 4.0 * error


def test_a_random_partition_into_single_entries_holds_the_diagonal_alone() -> None:
    matrix = np.ones((5, 5))
    assert exact.random_energy_share(matrix, [np.array([i]) for i in range(5)]) == pytest.approx(0.2)
    assert exact.random_energy_share(matrix, [np.arange(5)]) == pytest.approx(1.0)


def test_magnitudes_are_drawn_over_five_decades_and_in_cells_where_entries_are_many() -> None:
    axes = Figure().subplots()
    matrix = np.zeros((3100, 3100), dtype=np.float32)
    matrix[3000, 5] = -100.0
    matrix[0, 0] = 1.0
    image = exact.draw_magnitudes(axes, matrix, [np.arange(0, 1000), np.arange(1000, 3100)])
    values = image.get_array()
    assert values.shape == (1034, 1034)
    assert image.get_clim() == (-3.0, 2.0)
    assert values[1000, 1] == 2.0  # in cells of 3 x 3
    assert values[0, 0] == 0.0
    assert values[500, 500] == -3.0
    assert len(axes.lines) == 2


def test_planned_matrices_are_as_many_products_as_blocks_have_parameters(net: nn.Sequential) -> None:
    batch = (torch.randn(6, 3), torch.randint(2, (6,)))
    parts = exact.planned_matrices("matrices", net, he.losses.classification, "parameter", [batch])
    assert [part.what for part in parts] == ["matrices: 0.weight", "matrices: 0.bias", "matrices: 2.weight"]
    twice = exact.planned_matrices("matrices", net, he.losses.classification, "parameter", [batch], runs=2)
    assert twice[0].flop == pytest.approx(2.0 * parts[0].flop)
    assert parts[0].flop > 2.0 * parts[1].flop > 0.0  # 12 products against 4
