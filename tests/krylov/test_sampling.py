"""Estimates from random vectors: what they are by definition, bars that hold, and what is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import symmetric
from sampled import SPECTRA, N, matrix, sampled
from torch import Tensor

from hvp_engine.errors import NotFiniteError
from hvp_engine.krylov.range_sketch import RangeSampler
from hvp_engine.krylov.sampling import PlainSampler, Sampler, WholeSampler, batch
from hvp_engine.results.sphere import student

KINDS = {"xtrace": (RangeSampler, 10), "hutchinson": (PlainSampler, 20)}  # 20 products each
SEEDS = 100


def left_out_by_definition(a: np.ndarray, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Every estimate with a basis of its own, made from the products of the other vectors alone."""
    n, k = vectors.shape
    found: dict[str, list[object]] = {"trace": [], "square": [], "diagonal": []}
    for i in range(k):
        q, _ = np.linalg.qr(a @ np.delete(vectors, i, axis=1))
        inside, w = q @ q.T, vectors[:, i]
        rest = w - inside @ w
        scale = (n - k + 1) / (rest @ rest)
        found["trace"].append(np.trace(inside @ a) + scale * rest @ a @ rest)
        found["square"].append(np.trace(inside @ a @ a) + scale * (a @ rest) @ (a @ rest))
        found["diagonal"].append(np.diag(inside @ a) + w * (a @ w - inside @ a @ w))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("name", ["slow decay", "indefinite", "outliers"])
def test_leaving_one_out_is_what_a_basis_without_it_gives(name: str) -> None:
    a = matrix(name).numpy()
    sampler = sampled(matrix(name), RangeSampler, 9, norm=True)
    vectors = np.sqrt(N) * np.stack([sampler.of.vector(i).numpy() for i in range(9)], axis=1)
    wanted = left_out_by_definition(a, vectors)
    trace, square = sampler.trace(), sampler.square()
    np.testing.assert_allclose(trace.value, wanted["trace"].mean(), rtol=1e-9)
    np.testing.assert_allclose(square.value, wanted["square"].mean(), rtol=1e-9)
    assert trace.stderr >= 0.999 * wanted["trace"].std(ddof=1) / 3 and trace.reading == "xtrace"
    np.testing.assert_allclose(square.stderr, (3 / 9) ** 0.5 * wanted["square"].std(ddof=1), rtol=1e-8)


def test_the_diagonal_is_what_a_basis_without_one_vector_gives() -> None:
    sampler = sampled(matrix("slow decay"), RangeSampler, 9, diagonal=True)
    signs = np.sqrt(N) * np.stack([sampler.of.vector(i).numpy() for i in range(9)], axis=1)
    wanted = left_out_by_definition(matrix("slow decay").numpy(), signs)["diagonal"]
    value, variance = sampler.diagonal
    np.testing.assert_allclose(value, wanted.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(variance, 2 / 9 * wanted.var(axis=0, ddof=1), atol=1e-12)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_bars_hold_the_trace_and_the_norm(name: str, method: str) -> None:
    kind, most = KINDS[method]
    truth, held = (SPECTRA[name].sum(), (SPECTRA[name] ** 2).sum()), [0, 0]
    for seed in range(SEEDS):
        sampler: Sampler = sampled(matrix(name), kind, most, seed, norm=True)
        for place, (bar, true) in enumerate(zip((sampler.trace(), sampler.square()), truth, strict=True)):
            held[place] += bar.low <= true <= bar.high
    assert min(held) >= 90, held  # two standard deviations below 95


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_bars_hold_the_entries_of_the_diagonal(name: str, method: str) -> None:
    kind, most = KINDS[method]
    true, held = matrix(name).diagonal().numpy(), []
    for seed in range(12):
        sampler: Sampler = sampled(matrix(name), kind, most, seed, diagonal=True)
        value, variance = sampler.diagonal
        held.append(np.abs(value - true) <= student(sampler.probes - 1) * np.sqrt(variance))
    assert np.mean(held) >= 0.92


def test_bars_are_no_wider_than_they_must_be() -> None:
    for name in SPECTRA:
        found = [sampled(matrix(name), RangeSampler, 10, seed).trace() for seed in range(30)]
        error = np.sqrt(np.mean([(bar.value - SPECTRA[name].sum()) ** 2 for bar in found]))
        assert np.sqrt(np.mean([bar.stderr**2 for bar in found])) < 2.0 * error, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_of_smaller_rank_is_found_out_and_exact(dtype: torch.dtype) -> None:
    eigenvalues = torch.cat([torch.arange(1.0, 9.0), torch.zeros(N - 8)])
    a, noise = symmetric(eigenvalues), 4 * torch.finfo(dtype).eps
    sampler = sampled(a.to(dtype), RangeSampler, 40, norm=True, noise=noise)
    assert (sampler.probes, sampler.done) == (8, 4 + 4 + 2 + 2 + 3 + 2)  # the third of the last three lies in the range
    for bar, true in ((sampler.trace(), 36.0), (sampler.square(), 204.0)):
        assert bar.reading == "exact" and bar.low <= true <= bar.high
        assert bar.high - bar.low < 1e4 * noise * true
    value, variance = sampled(a.to(dtype), RangeSampler, 40, diagonal=True, noise=noise).diagonal
    assert not variance.any()
    np.testing.assert_allclose(value, a.diagonal(), atol=1e3 * noise)


@pytest.mark.parametrize("kind", [RangeSampler, PlainSampler, WholeSampler])
def test_a_matrix_of_zeros_is_zero(kind: type[Sampler]) -> None:
    sampler = sampled(torch.zeros(30, 30), kind, 12, norm=True, noise=1e-7)
    assert tuple(sampler.trace())[:2] == (0.0, 0.0) and tuple(sampler.square())[:2] == (0.0, 0.0)
    assert not np.any(sampled(torch.zeros(30, 30), kind, 12, diagonal=True).diagonal)


def test_as_many_vectors_as_there_are_parameters_are_exact() -> None:
    a = symmetric(torch.linspace(-1, 2, 12))
    sampler = sampled(a, RangeSampler, 12, norm=True)
    assert sampler.probes == 12 and sampler.trace().reading == "exact"
    np.testing.assert_allclose(sampler.trace().value, float(a.trace()), rtol=1e-10)
    np.testing.assert_allclose(sampler.square().value, float((a * a).sum()), rtol=1e-10)


def test_a_whole_matrix_is_exact() -> None:
    a = symmetric(torch.linspace(-1, 2, 12))
    sampler = sampled(a, WholeSampler, 12, diagonal=True)
    np.testing.assert_allclose(sampler.trace().value, float(a.trace()), rtol=1e-12)
    np.testing.assert_allclose(sampler.diagonal[0], a.diagonal(), rtol=1e-12)
    assert sampler.done == 12 and not sampler.diagonal[1].any()


def test_nearly_dependent_products_stay_safe() -> None:
    a = symmetric(torch.cat([torch.tensor([1e6, 1e6]), torch.full((N - 2,), 0.5)])).float()
    sampler = sampled(a, RangeSampler, 20, noise=1e-7)
    bar, true = sampler.trace(), 2e6 + 0.5 * (N - 2)
    assert bar.low <= true <= bar.high and bar.high - bar.low < 1e-3 * true


@pytest.mark.parametrize("kind", [RangeSampler, PlainSampler, WholeSampler])
def test_a_product_that_is_not_finite_is_refused(kind: type[Sampler]) -> None:
    with pytest.raises(NotFiniteError, match="of block 'b'"):
        sampled(torch.full((30, 30), torch.nan), kind, 12)


def test_batches_grow_by_half_until_they_are_full() -> None:
    taken = [0]
    while taken[-1] < 40:
        taken.append(taken[-1] + batch(taken[-1]))
    assert taken == [0, 4, 6, 9, 13, 19, 27, 35, 43]


def test_vectors_of_one_stream_do_not_depend_on_how_many_there_are() -> None:
    def values(most: int) -> Tensor:
        return sampled(matrix("flat"), PlainSampler, most).values[:4]

    assert torch.equal(values(4), values(20))
