"""Dropping classes from a head's curvature: what it changes stays below what it says, and that below what was asked."""

import math

import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.head import curvature as module
from hvp_engine.ops.head import dropping
from hvp_engine.ops.head.curvature import form_head_curvature, head_curvature_ref

EPS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def make(tokens, d, classes, peak=4.0, seed=0):
    """A head whose probabilities are concentrated on few classes, and far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, d, generator=generator, dtype=torch.float64) * peak / math.sqrt(d)
    weight = torch.randn(classes, d, generator=generator, dtype=torch.float64) + 1.0
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    return hidden, weight, bias


def dense(curvature):
    """The matrices (N, d, d) in float64."""
    d = curvature.hidden_size
    i, j = torch.triu_indices(d, d)
    matrices = curvature.packed.new_zeros(curvature.packed.shape[0], d, d, dtype=torch.float64)
    matrices[:, i, j] = curvature.packed.double()
    matrices[:, j, i] = curvature.packed.double()
    return matrices


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("tolerance", [1e-9, 1e-4, 1e-2, 0.5])
def test_what_is_lost_stays_within_the_bound_and_the_bound_within_the_tolerance(tolerance, dtype, monkeypatch):
    monkeypatch.setattr(module, "PROBABILITY_BYTES", 5 * 8 * 200)
    monkeypatch.setattr(dropping, "_FEWEST_TOKENS", 2)
    monkeypatch.setattr(dropping, "_PAIR_TOKENS", 0)
    sizes = [(1, 1, 1), (1, 3, 2), (7, 1, 31), (12, 5, 129), (11, 31, 200), (6, 8, 4097)]
    for seed, (tokens, d, classes) in enumerate(sizes):
        hidden, weight, bias = make(tokens, d, classes, seed=seed)
        hidden, weight = hidden.float().double(), weight.float().double()
        given = (hidden, weight) if dtype == torch.float64 else (hidden.float(), weight.float())
        for b in (None, bias):
            found = form_head_curvature(*given, bias=b, dtype=dtype, tolerance=tolerance)
            exact = head_curvature_ref(hidden, weight, b)
            lost = exact - dense(found)
            largest = exact.diagonal(dim1=1, dim2=2).sum(1).max()
            rounding = EPS[dtype] * (1e-6 + largest) * math.sqrt(d)
            assert (torch.linalg.matrix_norm(lost, 2) <= found.dropped.bound + rounding).all(), (tokens, d, classes)
            assert (lost.diagonal(dim1=1, dim2=2).sum(1) <= found.dropped.bound + rounding).all()
            assert torch.linalg.eigvalsh(lost).min() >= -rounding
            assert torch.linalg.eigvalsh(dense(found)).min() >= -rounding
            assert 0 <= found.dropped.relative <= tolerance
            assert (found.dropped.bound <= tolerance * largest * (1 + EPS[dtype]) + 1e-30).all()
            assert 0 < found.dropped.kept <= 1


def test_the_bound_is_the_trace_that_was_lost():
    hidden, weight, bias = make(9, 6, 500, peak=8.0)
    found = form_head_curvature(hidden, weight, bias=bias, dtype=torch.float64, tolerance=1e-2)
    lost = (head_curvature_ref(hidden, weight, bias) - dense(found)).diagonal(dim1=1, dim2=2).sum(1)
    assert found.dropped.kept < 0.5
    assert found.dropped.bound.max() <= 1.01 * lost.max()


def test_a_larger_tolerance_keeps_fewer_classes():
    hidden, weight, _ = make(20, 8, 2000, peak=8.0)
    shares = [
        form_head_curvature(hidden, weight, tolerance=tolerance).dropped.kept for tolerance in (1e-12, 1e-6, 1e-3, 0.1)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 2 * shares[2] > 2 * shares[3]


def test_chunks_have_their_own_classes_and_the_shares_are_averaged(monkeypatch):
    hidden, weight, _ = make(5, 8, 1000, peak=8.0)
    monkeypatch.setattr(module, "PROBABILITY_BYTES", 4 * 4 * 1000)
    whole = form_head_curvature(hidden, weight, tolerance=1e-3)
    parts = [form_head_curvature(hidden[rows], weight, tolerance=1e-3) for rows in (slice(0, 4), slice(4, 5))]
    assert torch.equal(whole.packed, torch.cat([part.packed for part in parts]))
    assert torch.equal(whole.dropped.bound, torch.cat([part.dropped.bound for part in parts]))
    assert whole.dropped.kept == pytest.approx(0.8 * parts[0].dropped.kept + 0.2 * parts[1].dropped.kept)
    assert whole.dropped.relative == max(part.dropped.relative for part in parts)


def test_tokens_are_split_where_that_saves_work(monkeypatch):
    hidden, weight, _ = make(1, 8, 1000, peak=6.0)
    hidden = torch.cat([hidden, -hidden]).repeat_interleave(4, 0)  # either half needs its own classes alone
    kept, shares = [], []
    for fewest in (2, 8):
        monkeypatch.setattr(dropping, "_FEWEST_TOKENS", fewest)
        found = form_head_curvature(hidden, weight, report=shares.append, tolerance=1e-5)
        kept.append(found.dropped.kept)
    assert kept[0] < 0.6 * kept[1]
    assert shares[-1] == 1.0


def test_no_tolerance_drops_nothing_and_changes_no_bit(monkeypatch):
    hidden, weight, bias = make(9, 6, 300, peak=20.0)
    plain = form_head_curvature(hidden, weight, bias=bias)
    monkeypatch.setattr(dropping.Dropping, "merge", None)
    zero = form_head_curvature(hidden, weight, bias=bias, tolerance=0.0)
    assert plain.dropped is None
    assert zero.dropped is None
    assert torch.equal(zero.packed, plain.packed)


def test_certain_tokens_lose_nothing_and_none_are_no_trouble():
    hidden, weight, _ = make(4, 6, 50, peak=1e4)
    certain = form_head_curvature(hidden, weight, dtype=torch.float64, tolerance=1e-3)
    assert certain.packed.abs().max() <= 1e-12 * weight.square().sum(1).max()
    assert certain.dropped.relative <= 1e-3
    none = form_head_curvature(hidden[:0], weight, tolerance=1e-3)
    assert none.dropped.bound.shape == (0,)
    assert none.dropped.relative == 0.0


def test_two_runs_give_the_same_bits_and_any_number_of_threads_the_same_classes():
    hidden, weight, _ = make(70, 33, 3001, peak=12.0)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append(form_head_curvature(hidden.float(), weight.float(), tolerance=1e-3))
    finally:
        torch.set_num_threads(before)
    first, again = results[:2]
    assert torch.equal(again.packed, first.packed)
    assert torch.equal(again.dropped.bound, first.dropped.bound)
    for other in results[2:]:  # products of torch round differently
        assert other.dropped.kept == first.dropped.kept < 0.5
        torch.testing.assert_close(other.packed, first.packed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tolerance", [-1e-9, 1.0, 2, math.nan, math.inf, "0.1", None])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    hidden, weight, _ = make(2, 3, 5)
    with pytest.raises(ConfigurationError, match=r"at least 0 and below 1.*pass 0 to keep all classes"):
        form_head_curvature(hidden, weight, tolerance=tolerance)
