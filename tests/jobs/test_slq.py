"""slq against dense Hessians and known spectra."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from problems import Case, dense_hessian, gpt, mlp, quadratic, symmetric

import hvp_engine as he
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import Distribution, probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings


def run(matrix: torch.Tensor, **options: object) -> he.Spectrum:
    problem = quadratic(matrix)
    return he.slq(problem.model, problem.loss, **options)["full"]


def test_traces_and_moments_agree_with_the_dense_hessian(case: Case) -> None:
    hessian = dense_hessian(case)
    exact = torch.linalg.eigvalsh(hessian).numpy()
    spectrum = he.slq(case.model, case.loss, data=case.data, steps=40, probes=40, precision="fp64", check=False)["full"]
    for found, wanted in (
        (spectrum.trace(), exact.sum()),
        (spectrum.moment(2), (exact**2).mean()),
        (spectrum.moment(3), (exact**3).mean()),
        (spectrum.frobenius_norm(), np.sqrt((exact**2).sum())),
    ):
        assert abs(found.value - wanted) <= 5 * found.stderr + 1e-12 * abs(wanted)
    smallest, largest = spectrum.extremes()
    width = exact[-1] - exact[0]
    assert abs(smallest - exact[0]) <= 1e-3 * width
    assert abs(largest - exact[-1]) <= 1e-3 * width


def test_complete_lanczos_reproduces_every_eigenvalue(case: Case) -> None:
    name = next(iter(dict(case.model.named_parameters())))
    hessian = dense_hessian(case, [name])
    spectra = he.slq(case.model, case.loss, [name], data=case.data, steps=len(hessian), probes=1, precision="fp64")
    exact = torch.linalg.eigvalsh(hessian).numpy()
    nodes = spectra[name].nodes[0]
    scale = np.abs(exact).max()
    # Every Ritz value is an eigenvalue; a repeated eigenvalue may be found once.
    distance = np.abs(nodes[:, None] - exact[None]).min(axis=1)
    assert distance.max() <= 1e-9 * scale
    weighted = np.abs(exact) > 1e-6 * scale
    missed = np.abs(exact[weighted][:, None] - nodes[None]).min(axis=1)
    assert missed.max() <= 1e-9 * scale


def test_density_agrees_with_the_smoothed_exact_density() -> None:
    eigenvalues = torch.cat([torch.linspace(-1, 1, 90), torch.tensor([3.0, 4.0, 6.0])])
    spectrum = run(symmetric(eigenvalues), steps=93, probes=400, precision="fp64", check=False)
    grid, density = spectrum.density(np.linspace(-3, 8, 600), sigma=0.3)
    exact = np.exp(-((grid[:, None] - eigenvalues.numpy()) ** 2) / (2 * 0.3**2)).mean(axis=1)
    exact /= np.sqrt(2 * np.pi) * 0.3
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-6)
    assert np.abs(density - exact).max() <= 0.05 * exact.max()


SPECTRA = {
    "clustered": torch.cat([torch.full((40,), 1.0) + 1e-7 * torch.arange(40), torch.linspace(2, 3, 60)]),
    "repeated": torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(40),
    "indefinite": torch.linspace(-2, 3, 120),
    "low rank": torch.cat([torch.zeros(110), torch.linspace(1, 2, 10)]),
    "identity": torch.ones(50),
    "zero": torch.zeros(30),
    "outliers": torch.cat([torch.linspace(0, 1, 190), torch.arange(10, 110, 10)]),
}


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_known_spectra_have_no_ghosts(name: str, scale: float) -> None:
    eigenvalues = np.sort(SPECTRA[name].double().numpy() * scale)
    matrix = symmetric(torch.from_numpy(eigenvalues)).float()
    exact = torch.linalg.eigvalsh(matrix.double()).numpy()
    spectrum = run(matrix, steps=100, probes=2, check=False)
    norm = max(np.abs(exact).max(), 1e-300)
    for p in range(2):
        m = int(spectrum.steps[p])
        nodes, weights = spectrum.nodes[p, :m], spectrum.weights[p, :m]
        assert weights.sum() == pytest.approx(1.0, abs=1e-9)
        assert nodes.min() >= exact[0] - 1e-5 * norm
        assert nodes.max() <= exact[-1] + 1e-5 * norm
    if name == "outliers":
        top = np.sort(spectrum.nodes[0])[::-1][:11]
        np.testing.assert_allclose(top[:10], np.arange(100, 0, -10) * scale, rtol=1e-4)
        assert top[10] <= 1.001 * scale  # the next one belongs to the bulk: no copies of outliers
    if name in ("identity", "zero"):
        assert (spectrum.steps == 1).all()
    if name == "repeated":
        heavy = spectrum.nodes[0][spectrum.weights[0] > 1e-6]
        assert len(heavy) == 3


def lanczos_on(matrix: torch.Tensor, steps: int, **settings: object) -> BatchedLanczos:
    options = {"reorthogonalize": "full", "storage": Storage(matrix.dtype), **settings}
    n = len(matrix)
    state = BatchedLanczos(
        lambda vectors: {"b": vectors["b"] @ matrix},
        {"b": {k: probe(0, "b", k, n, "rademacher", matrix.dtype) for k in range(2)}},
        LanczosSettings(steps, **options),
        matrix.dtype,
        torch.device("cpu"),
    )
    while not state.finished:
        state.step()
    return state


@pytest.mark.parametrize("name", sorted(set(SPECTRA) - {"identity", "zero"}))
def test_basis_stays_orthogonal_in_float32(name: str) -> None:
    state = lanczos_on(symmetric(SPECTRA[name]).float(), 60)
    assert max(state.orthogonality().values()) <= 1e-5


def test_bfloat16_basis_gives_the_same_outliers_and_reports_its_orthogonality() -> None:
    n = 3000
    eigenvalues = torch.cat([torch.linspace(0, 1, n - 5), torch.tensor([5.0, 6.0, 7.0, 8.0, 9.0])])
    matrix = torch.diag(eigenvalues)
    exact, rounded = (lanczos_on(matrix, 50, storage=Storage(d)) for d in (torch.float32, torch.bfloat16))
    tops = [
        np.sort(he.Spectrum.from_tridiagonal("b", n, s.alphas, s.betas[:, :-1], s.steps).nodes[0])[::-1][:6]
        for s in (exact, rounded)
    ]
    np.testing.assert_allclose(tops[1][:5], [9, 8, 7, 6, 5], rtol=1e-4)
    assert tops[1][5] <= 1.01
    np.testing.assert_allclose(tops[1][:5], tops[0][:5], rtol=1e-4)
    # The stored vectors carry bfloat16's rounding, 2^-9 of each entry, and no more than a few times that.
    assert max(rounded.orthogonality().values()) <= 8 * 2.0**-9


def test_without_reorthogonalisation_short_runs_agree_and_long_ones_show_ghosts() -> None:
    matrix = symmetric(SPECTRA["outliers"]).float()
    full, short = (run(matrix, steps=12, probes=1, reorthogonalize=mode, check=False) for mode in ("full", "none"))
    np.testing.assert_allclose(short.alphas, full.alphas, rtol=1e-3, atol=1e-3)
    assert (full.reorthogonalized, short.reorthogonalized) == (True, False)
    long = run(matrix, steps=150, probes=1, reorthogonalize="none", check=False)
    assert np.sum(long.nodes[0] > 5) > 10


def test_blocks_smaller_than_the_steps_end_exactly() -> None:
    case = mlp()
    spectra = he.slq(case.model, case.loss, "parameter", data=case.data, steps=30, probes=2, precision="fp64")
    for name, spectrum in spectra.items():
        assert (spectrum.steps <= min(30, spectrum.numel)).all()
        hessian = dense_hessian(case, [name])
        if spectrum.numel <= 30:
            exact = float(torch.trace(hessian @ hessian))
            assert spectrum.nodes.shape == (2, 30)
            largest = float(torch.linalg.eigvalsh(hessian)[-1])
            assert spectrum.extremes()[1] == pytest.approx(largest, rel=1e-8, abs=1e-10 * exact)


def test_residuals_are_the_next_off_diagonals_of_a_longer_run() -> None:
    problem = mlp()
    shorter, longer = (
        he.slq(problem.model, problem.loss, "parameter", data=problem.data, steps=steps, probes=3) for steps in (7, 8)
    )
    for name, spectrum in shorter.items():
        assert (spectrum.residuals > 0.0).all() or spectrum.numel <= 7
        assert np.array_equal(spectrum.residuals, longer[name].coefficients.truncated(7).residuals)


def test_same_seed_same_bits_and_other_seed_other_probes() -> None:
    case = gpt()
    options = {"data": case.data, "steps": 6, "probes": 2, "check": False}
    first, again = (he.slq(case.model, case.loss, "module", **options) for _ in range(2))
    other = he.slq(case.model, case.loss, "module", seed=1, **options)
    for name in first:
        assert np.array_equal(first[name].alphas, again[name].alphas)
        assert np.array_equal(first[name].nodes, again[name].nodes)
        assert not np.array_equal(first[name].alphas, other[name].alphas)


def test_micro_batch_split_changes_nothing_but_rounding() -> None:
    case = gpt()
    options = {"data": case.data, "steps": 6, "probes": 2, "precision": "fp64", "check": False}
    whole, split = (he.slq(case.model, case.loss, "module", microbatch=m, **options) for m in (None, 1))
    for name in whole:
        scale = np.abs(whole[name].nodes).max()
        np.testing.assert_allclose(split[name].nodes, whole[name].nodes, atol=1e-9 * scale)


def test_a_block_does_not_depend_on_the_other_blocks() -> None:
    case = mlp()
    options = {"data": case.data, "steps": 5, "probes": 1, "check": False}
    alone = he.slq(case.model, case.loss, ["2.weight"], **options)["2.weight"]
    among = he.slq(case.model, case.loss, "parameter", **options)["2.weight"]
    assert np.array_equal(alone.alphas, among.alphas)


def test_small_memory_budget_runs_in_waves_with_the_same_result() -> None:
    problem = quadratic(symmetric(torch.linspace(-1, 2, 400)).float())
    options = {"steps": 50, "probes": 6, "check": False}
    roomy = he.slq(problem.model, problem.loss, **options)
    stream = 400 * (50 + 3) * 4
    budget = 2 * roomy.manifest["plan"]["graph_bytes"] + 5 * stream // 2
    tight = he.slq(problem.model, problem.loss, memory=budget, **options)
    assert roomy.manifest["plan"]["waves"] == 1
    assert tight.manifest["plan"]["waves"] == 3
    assert np.array_equal(roomy["full"].alphas, tight["full"].alphas)


@pytest.mark.parametrize("distribution", get_args(Distribution))
def test_probes_are_unit_vectors_that_depend_on_seed_block_and_number(distribution: str) -> None:
    def draw(*key: object) -> torch.Tensor:
        return probe(*key, 1001, distribution, torch.float64)

    base = draw(0, "a", 0)
    assert float(base.norm()) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(base, draw(0, "a", 0))
    for other in (draw(1, "a", 0), draw(0, "b", 0), draw(0, "a", 1)):
        assert abs(float(base @ other)) < 0.2
    many = torch.stack([draw(0, "c", k) for k in range(400)])
    second = many.T @ many / 400 * 1001
    assert abs(float(second.diagonal().mean()) - 1) < 0.01
    off = second - torch.diag(second.diagonal())
    assert float(off.abs().max()) < 0.35


def test_signs_miss_an_eigenvector_on_two_coordinates_and_the_sphere_does_not() -> None:
    matrix = torch.linspace(-1, 1, 60, dtype=torch.float64).diag()
    matrix[:2] = matrix[:, :2] = 0.0
    matrix[:2, :2] = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])  # eigenvalue 10, eigenvector (1, -1) / sqrt(2)
    options = {"steps": 6, "probes": 1, "precision": "fp64", "check": False}
    missed = {
        distribution: sum(run(matrix, seed=seed, **chosen, **options).extremes()[1] < 9.0 for seed in range(24))
        for distribution, chosen in {"signs": {"distribution": "rademacher"}, "the default": {}}.items()
    }
    assert missed["signs"] >= 6
    assert missed["the default"] == 0


def test_manifest_says_how_the_numbers_came_about() -> None:
    case = gpt()
    manifest = he.slq(case.model, case.loss, ["wte.weight"], data=case.data, steps=3, probes=1).manifest
    assert manifest["config"]["seed"] == 0
    assert manifest["identity"]["parameters"]
    assert manifest["identity"]["data"]
    assert manifest["verification"]["asymmetry"] < 1e-10
    assert manifest["verification"]["finite_difference"] < 1e-4
    assert any("lm_head.weight is tied to wte.weight" in note for note in manifest["notes"])
