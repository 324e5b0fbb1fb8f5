"""Thick-restarted Lanczos on matrices with known spectra: copies, clusters, both signs, nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import symmetric

from hvp_engine.errors import ConfigurationError, NotFiniteError
from hvp_engine.krylov.eigen_stream import EigenStream, Start
from hvp_engine.krylov.restart import RestartedLanczos
from hvp_engine.krylov.wanted import Wanted, displacing, is_absent, preferred

N = 400
BULK = np.random.default_rng(0).normal(size=N) * 0.1
SPECTRA = {
    "outliers of both signs": np.concatenate([[10, 8, -6, 5, -4.5, 4, 3.5, 3, -2.8, 2.6, 2.4], BULK[11:]]),
    "copies": np.concatenate([[5] * 3, [4] * 2, [3] * 4, [2] * 5, BULK[14:]]),
    "copies of both signs": np.concatenate([[5] * 3, [-4] * 2, [3] * 4, [-2] * 5, BULK[14:]]),
    "a cluster": np.concatenate([1 + 1e-4 * np.arange(10), BULK[10:]]),
    "rank 5": np.concatenate([[5, 4, 3, -2, 1], np.zeros(N - 5)]),
    "one value": np.full(N, 3.0),
    "nothing": np.zeros(N),
    "three": np.array([1.0, -2.0, 3.0]),
    "fifteen of one value": np.ones(15),
    "twelve": np.arange(12) - 4.0,
}


def solved(matrix: torch.Tensor, wanted: Wanted, capacity: int = 40, noise: float = 1e-7, seed: int = 0) -> EigenStream:
    dtype, numel = matrix.dtype, len(matrix)
    start = Start("b", numel, min(capacity, numel), seed, noise, dtype, torch.device("cpu"))
    lanczos = RestartedLanczos(
        lambda vectors: {b: v @ matrix for b, v in vectors.items()}, {"b": EigenStream(start, wanted)}
    )
    while not lanczos.finished:
        lanczos.step()
    return lanczos.streams["b"]


def wanted_of(values: np.ndarray, which: str, k: int) -> np.ndarray:
    ordered = np.sort(values)
    return np.sort(ordered[preferred(ordered, which)[:k]])  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [21, 40, 100])
@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_wanted_pair_is_found_as_often_as_it_is_there(name: str, which: str, capacity: int) -> None:
    values = SPECTRA[name]
    matrix = symmetric(torch.from_numpy(values)).float()
    found = solved(matrix, Wanted(10, which, 1e-5), capacity)  # type: ignore[arg-type]
    size = np.abs(values).max()
    assert found.k == min(10, len(values)) and found.ended_by == "converged"
    np.testing.assert_allclose(
        np.sort(found.values.numpy()), wanted_of(values, which, found.k), atol=1e-3 * size + 1e-30
    )
    vectors = found.space.store[: found.k].double()
    products = vectors @ matrix.double()
    residuals = (products - found.values[:, None] * vectors).norm(dim=1)
    np.testing.assert_allclose(residuals, found.residuals, rtol=0.1, atol=1e-6 * size)
    assert float(residuals.max()) <= 1.001e-5 * size
    assert float((vectors @ vectors.T - torch.eye(found.k)).abs().max()) < 1e-5


@pytest.mark.parametrize("seed", range(20))
def test_no_start_misses_a_copy_above_the_last_wanted_value(seed: int) -> None:
    values = np.concatenate([[5, 4.5, 4, 4, 3, 2.9, 2.8, 2.7, 2.6], np.linspace(-1, 2.5, N - 9)])
    found = solved(symmetric(torch.from_numpy(values)).float(), Wanted(6, "LA", 1e-4), seed=seed)
    np.testing.assert_allclose(np.sort(found.values.numpy()), [2.9, 3, 4, 4, 4.5, 5], atol=1e-3)


def test_few_vectors_cost_few_products_more() -> None:
    matrix = symmetric(torch.from_numpy(np.random.default_rng(1).normal(size=N))).float()
    roomy, tight = (solved(matrix, Wanted(10), capacity) for capacity in (200, 40))
    assert roomy.spent <= tight.spent < 1.1 * roomy.spent


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_noise_ends_it_and_is_said(noise: float) -> None:
    matrix = symmetric(torch.from_numpy(SPECTRA["outliers of both signs"])).float()

    def multiply(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        product = vectors["b"] @ matrix
        rounded = torch.sin(1e4 * vectors["b"])  # what depends on the vector in no simple way, as rounding does
        return {"b": product + noise * 10 * rounded / rounded.norm(dim=1, keepdim=True)}

    for known in (noise, 0.0):
        start = Start("b", N, 40, 0, known, torch.float32, torch.device("cpu"))
        lanczos = RestartedLanczos(multiply, {"b": EigenStream(start, Wanted(10, "LM", noise / 10))})  # type: ignore[arg-type]
        while not lanczos.finished:
            lanczos.step()
        stream = lanczos.streams["b"]
        assert stream.ended_by == "noise" and stream.spent < 400
        assert noise / 10 < float(stream.residuals.max()) / float(stream.size) < 10 * noise


def test_one_product_confirms_the_residuals_and_what_it_does_not_confirm_is_measured() -> None:
    matrix = symmetric(torch.from_numpy(SPECTRA["outliers of both signs"])).float()

    def solved_with(error: float) -> EigenStream:
        start = Start("b", N, 40, 0, 1e-7, torch.float32, torch.device("cpu"))
        stream = EigenStream(start, Wanted(10))
        lanczos = RestartedLanczos(
            lambda vectors: {"b": vectors["b"] @ (matrix if stream.grows else matrix * (1 + error))}, {"b": stream}
        )
        while not lanczos.finished:
            lanczos.step()
        return stream

    sound, small, wrong = map(solved_with, (0.0, 1e-6, 1e-4))
    assert sound.spent == small.spent == sound.grown + 1
    assert wrong.spent == sound.grown + 1 + 10
    for stream, error in ((sound, 0.0), (small, 1e-6), (wrong, 1e-4)):
        vectors = stream.space.store.double()[:10]
        products = vectors @ matrix.double() * (1 + error)
        quotients = (products * vectors).sum(1)
        np.testing.assert_allclose(stream.values, quotients, rtol=2e-6)
        residuals = (products - quotients[:, None] * vectors).norm(dim=1)
        np.testing.assert_allclose(stream.residuals, residuals, rtol=0.02, atol=1e-5)


def test_a_tolerance_near_the_error_of_products_is_measured_pair_by_pair() -> None:
    matrix = symmetric(torch.from_numpy(SPECTRA["outliers of both signs"])).float()
    found = solved(matrix, Wanted(10, "LM", 1e-5))
    assert found.ended_by == "converged" and found.spent == found.grown + 10


def test_products_end_it_where_they_are_limited() -> None:
    matrix = symmetric(torch.linspace(0, 1, N, dtype=torch.float64))
    found = solved(matrix, Wanted(10, "LM", 1e-10, maxiter=30))
    assert found.ended_by == "maxiter" and found.spent == 40 and float(found.residuals.max()) > 1e-10


def test_float64_reaches_what_float32_cannot() -> None:
    matrix = symmetric(torch.from_numpy(SPECTRA["outliers of both signs"]))
    tight = Wanted(5, "LM", 1e-11)
    assert solved(matrix, tight, noise=1e-15).ended_by == "converged"
    assert solved(matrix.float(), tight).ended_by == "noise"


def test_a_product_that_is_not_finite_is_named() -> None:
    matrix = torch.full((50, 50), torch.inf)
    with pytest.raises(NotFiniteError, match="of block 'b' is not finite in sweep 1"):
        solved(matrix, Wanted(3))


def test_what_a_missing_copy_would_displace() -> None:
    values = np.array([-5.0, -2.0, 2.0, 2.05, 3.0])
    np.testing.assert_array_equal(displacing(values, "LM", 0.1), [3.0, -5.0])
    np.testing.assert_array_equal(displacing(values, "LA", 0.1), [-2.0, -np.inf])
    np.testing.assert_array_equal(displacing(values, "SA", 0.1), [np.inf, 2.05])
    np.testing.assert_array_equal(displacing(values, "BE", 0.1), [3.0, -5.0])
    np.testing.assert_array_equal(displacing(np.ones(4), "LM", 0.1), [np.inf, -np.inf])


def test_chance_is_left_once_in_a_thousand() -> None:
    squares = np.random.default_rng(0).standard_normal(200_000) ** 2 / 1000  # components of vectors of the sphere
    assert 0.5e-3 < np.mean([is_absent(1 / square, 1000) for square in squares]) < 2e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"k": 0}, "k=0 must be a whole number of at least 1"),
        ({"which": "XX"}, "which='XX' is not one of 'LM', 'LA', 'SA', 'BE'"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be a number above 0"),
        ({"tolerance": float("nan")}, "tolerance=nan must be"),
        ({"maxiter": 3}, "maxiter=3 is less than k=10"),
        ({"vectors": 1}, "vectors=1 must be True or False"),
    ],
)
def test_settings_are_checked(setting: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Wanted(**setting)
