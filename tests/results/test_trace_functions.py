"""tr f(H) and log det(H + shift I): against dense matrices, how often bars hold, and what is refused."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from problems import dense_hessian, gpt
from scipy.special import expit
from streams import bulk, streams, with_outliers

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.results.spectrum import Spectrum

BLOCKS = ["wte.weight", "layers.0.attn.wq.weight", "layers.1.c_proj.weight"]


def spectrum_of(eigenvalues, steps, probes=1, seed=0, noise=0.0):
    found, _ = streams(eigenvalues, steps, probes, seed, noise)
    return Spectrum.from_tridiagonal(
        "block", found.numel, found.alphas, found.betas, found.steps, residuals=found.residuals, noise=noise
    )


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def test_bars_hold_what_the_dense_matrices_say():
    case = gpt()  # tied weights, ragged batches, ignored tokens
    spectra = he.slq(
        case.model, case.loss, BLOCKS, data=case.data, steps=20, probes=6, precision="fp64", progress=False
    )
    for block in BLOCKS:
        values = torch.linalg.eigvalsh(dense_hessian(case, [block])).numpy()
        found, shift = spectra[block], 0.1 - 1.5 * min(0.0, float(values[0]))
        for estimate, truth in (
            (found.logdet(shift), np.log(values + shift).sum()),
            (found.apply(np.tanh), np.tanh(values).sum()),
            (found.apply(lambda x: expit(10.0 * x)), expit(10.0 * values).sum()),
        ):
            assert holds(estimate, truth) and estimate.stderr > 0.0
            assert estimate.high - estimate.low < 0.15 * found.numel  # and are of use


@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("eigenvalues", [np.abs(bulk(300, 1, 1.0)), 5.5 + with_outliers(300)])
def test_bars_of_log_determinants_hold(eigenvalues, probes):
    shift, held, errors, widths = 0.2, [], [], []
    truth = np.log(eigenvalues + shift).sum()
    for seed in range(60):
        estimate = spectrum_of(eigenvalues, 15, probes, seed).logdet(shift)
        held.append(holds(estimate, truth))
        errors.append(estimate.value - truth)
        widths.append(estimate.high - estimate.low)
    assert np.mean(held) >= 0.9
    assert np.median(widths) < 12.0 * np.std(errors)  # half of it what more steps would change


@pytest.mark.parametrize("n", [1, 2, 30])
def test_exact_blocks_have_exact_determinants(n):
    eigenvalues = np.sort(np.abs(bulk(n, 2, 1.0))) + 0.01
    spectrum = Spectrum.exact("block", n, eigenvalues)
    for shift in (0, 0.5, np.float32(2.0)):
        for reading in ("auto", "gauss"):
            assert spectrum.logdet(shift, reading).value == pytest.approx(np.log(eigenvalues + shift).sum(), rel=1e-9)
    assert spectrum.logdet().reading == "exact"


def test_log_determinants_are_those_that_apply_gives():
    spectrum = spectrum_of(with_outliers(300), 12, 3)
    for reading in ("auto", "gauss"):
        by_hand = spectrum.apply(lambda x: np.log(x + 9.0), reading)
        assert spectrum.logdet(9.0, reading) == by_hand
    assert Spectrum.trace_of is Spectrum.apply


def test_a_shift_that_leaves_a_negative_eigenvalue_is_refused_with_one_that_does_not():
    spectrum = spectrum_of(with_outliers(300), 12)  # down to -5
    for shift in (0.0, 1.0, -spectrum.extremes()[0], -7):
        with pytest.raises(
            ConfigurationError, match="Block 'block': H .* is not positive.*smallest eigenvalue"
        ) as refusal:
            spectrum.logdet(shift)
    (advised,) = re.findall(r"Give a shift of ([\d.]+) or more", str(refusal.value))
    assert 5.0 < float(advised) < 5.2 and math.isfinite(spectrum.logdet(float(advised)).value)
    assert math.isfinite(spectrum.apply(lambda x: np.log(np.maximum(x, 1e-6))).value)
    with pytest.raises(ConfigurationError, match="Give a shift above 0"):
        Spectrum.exact("block", 3, [0.0, 0.0, 0.0]).logdet()


@pytest.mark.parametrize("shift", [math.nan, math.inf, "1", None, True, 1j, [1.0]])
def test_shifts_that_are_no_numbers_are_refused(shift):
    with pytest.raises(ConfigurationError, match="must be a finite number"):
        spectrum_of(bulk(50), 5).logdet(shift)


def test_a_bar_has_no_ends_where_the_error_of_products_may_reach_zero():
    eigenvalues = np.abs(bulk(300, 1, 1.0))
    known, unknown = (spectrum_of(eigenvalues, 15, noise=noise).logdet(1e-3) for noise in (1e-8, 1e-2))
    assert math.isfinite(known.high - known.low) and holds(known, np.log(eigenvalues + 1e-3).sum())
    assert math.isfinite(unknown.value) and (unknown.low, unknown.high) == (-math.inf, math.inf)


FUNCTIONS = {
    "not finite": (np.log, "shift or clip them first"),
    "a number": (lambda x: 1.0, "shift or clip them first"),
    "nan": (lambda x: np.full(x.shape, np.nan), "shift or clip them first"),
    "infinite": (lambda x: np.full(x.shape, -np.inf), "shift or clip them first"),
    "a sum": (lambda x: x.sum(axis=-1), "shift or clip them first"),
    "complex": (np.emath.log, "this one fails.*complex128"),
    "text": (lambda x: "log", "this one fails"),
    "nothing": (lambda x: None, "this one fails"),
    "of single numbers": (math.sqrt, "a NumPy array of eigenvalues.*this one fails"),
    "of tensors": (torch.exp, "a NumPy array of eigenvalues.*this one fails"),
    "no function": (3.0, "this one fails"),
}


@pytest.mark.parametrize("reading", ["auto", "gauss"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_that_are_no_functions_of_eigenvalues_are_refused(kind, reading):
    function, words = FUNCTIONS[kind]
    spectrum = spectrum_of(bulk(50), 5)
    with pytest.raises(ConfigurationError, match=words):
        spectrum.apply(function, reading)
    assert spectrum.apply(lambda x: np.log(np.maximum(x, 1e-6)), reading).value < 0.0  # the fix


def test_a_function_may_write_to_what_it_gets_and_return_integers_or_tensors():
    spectrum = spectrum_of(with_outliers(300), 12)
    nodes = spectrum.reading.ritz.nodes.copy()

    def square(x):
        x *= x
        return x

    assert spectrum.apply(square) == spectrum.apply(np.square)
    assert np.array_equal(spectrum.reading.ritz.nodes, nodes)
    assert spectrum.apply(lambda x: torch.from_numpy(x) ** 2) == spectrum.apply(np.square)
    assert spectrum.apply(lambda x: (x > 1.0).astype(np.int8)).value == pytest.approx(6.0, abs=0.5)
