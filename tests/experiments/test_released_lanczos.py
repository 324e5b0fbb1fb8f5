"""The algorithm of the code released with arXiv 2402.16788, written anew, against ours on the same start vectors.

What it does otherwise is kept: products are summed over micro-batches where ours are averaged, those of single blocks
in float32; vectors are float64 and only ever made orthogonal to the last two; a residual below 1e-8 is divided by that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.krylov.probes import probe

CONFIG = GPTConfig(vocabulary=64, context=16, layers=2, heads=2, width=32)
MICROBATCHES, PROBES, SEED = 4, 1, 5
COMPARED = 15
CLOSE = 1e-3
LATER = 40  # steps after which vectors are long no longer orthogonal, with the recurrence alone
Vectors = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(SEED)
    model = GPT(CONFIG).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(3.0)  # a net so narrow hardly bends where GPT-2's deviation starts it
    return model


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    shape = (MICROBATCHES, 4, CONFIG.context)
    return list(torch.randint(CONFIG.vocabulary, shape, generator=generator))


def released_products(model: nn.Module, batches: Sequence[Tensor], vectors: Vectors, *, whole: bool) -> Vectors:
    """H v summed over micro-batches, of every tensor's diagonal block or, ``whole``, of all tensors together."""
    parameters = {name: dict(model.named_parameters())[name] for name in vectors}
    products = {
        name: torch.zeros_like(vector, dtype=torch.float64 if whole else torch.float32)
        for name, vector in vectors.items()
    }
    for tokens in batches:
        with sdpa_kernel(SDPBackend.MATH):  # the only one of PyTorch's that can be differentiated twice
            total, count = he.losses.causal_lm(model, tokens)
        gradients = torch.autograd.grad(total / count, list(parameters.values()), create_graph=True)
        inner = {
            name: torch.sum(gradient.double() * vectors[name])
            for name, gradient in zip(parameters, gradients, strict=True)
        }
        together = [sum(inner.values())] if whole else list(inner.values())
        targets = [list(parameters)] if whole else [[name] for name in parameters]
        for scalar, names in zip(together, targets, strict=True):
            found = torch.autograd.grad(scalar, [parameters[name] for name in names], retain_graph=True)
            for name, product in zip(names, found, strict=True):
                products[name] += product.double()
    return products


def released_lanczos(
    model: nn.Module, batches: Sequence[Tensor], starts: Vectors, steps: int, *, whole: bool
) -> dict[str, tuple[list[float], list[float]]]:
    """Alphas and betas by stream; ``whole`` makes one stream of all tensors, named "full"."""

    def dots(a: Vectors, b: Vectors) -> dict[str, float]:
        each = {name: float(torch.sum(a[name] * b[name])) for name in a}
        return dict.fromkeys(each, sum(each.values())) if whole else each

    newest, before = starts, dict.fromkeys(starts, torch.tensor(0.0))
    beta = dict.fromkeys(starts, 0.0)
    alphas, betas = [], []
    for step in range(steps):
        products = released_products(model, batches, newest, whole=whole)
        alpha = dots(products, newest)
        left = {name: products[name] - alpha[name] * newest[name] - beta[name] * before[name] for name in starts}
        alphas.append(alpha)
        if step + 1 == steps:
            break
        beta = {name: square**0.5 for name, square in dots(left, left).items()}
        betas.append(beta)
        before, newest = newest, {name: left[name] / max(beta[name], 1e-8) for name in starts}
    streams = {"full": next(iter(starts))} if whole else {name: name for name in starts}
    return {
        stream: ([alpha[name] for alpha in alphas], [beta[name] for beta in betas]) for stream, name in streams.items()
    }


def start_vectors(model: nn.Module, number: int, *, whole: bool) -> Vectors:
    """The engine's own probes in float64, cut into tensors."""
    parameters = dict(model.named_parameters())
    if not whole:
        chosen = {name: parameters[name] for (name,) in paper_blocks(CONFIG).values()}
        return {
            name: probe(SEED, name, number, p.numel(), "gaussian", torch.float64).view(p.shape)
            for name, p in chosen.items()
        }
    sizes = [parameter.numel() for parameter in parameters.values()]
    pieces = probe(SEED, "full", number, sum(sizes), "gaussian", torch.float64).split(sizes)
    return {name: piece.view(p.shape) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}


def ours(model: nn.Module, batches: Sequence[Tensor], steps: int, *, whole: bool) -> he.Spectra:
    blocks = None if whole else [name for (name,) in paper_blocks(CONFIG).values()]
    return he.slq(
        model, he.losses.causal_lm, blocks, data=list(batches), steps=steps, probes=PROBES, seed=SEED, progress=False
    )


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "full"])
def test_first_coefficients_are_those_of_the_released_algorithm(model: GPT, batches: list[Tensor], whole: bool) -> None:
    spectra = ours(model, batches, COMPARED + 1, whole=whole)
    for number in range(PROBES):
        theirs = released_lanczos(model, batches, start_vectors(model, number, whole=whole), COMPARED + 1, whole=whole)
        assert set(theirs) == set(spectra)
        for name, (alphas, betas) in theirs.items():
            spectrum = spectra[name]
            size = np.abs(spectrum.alphas[number, :COMPARED]).max() + spectrum.betas[number, :COMPARED].max()
            for mine, published in ((spectrum.alphas, alphas), (spectrum.betas, betas)):
                mean = np.array(published[:COMPARED]) / MICROBATCHES  # they sum over micro-batches
                np.testing.assert_allclose(mine[number, :COMPARED], mean, rtol=CLOSE, atol=CLOSE * size)


def test_the_released_recurrence_finds_the_largest_eigenvalue_more_than_once(model: GPT, batches: list[Tensor]) -> None:
    name = "layers.0.attn.wo.weight"
    starts = {name: start_vectors(model, 0, whole=False)[name]}
    alphas, betas = released_lanczos(model, batches, starts, LATER, whole=False)[name]
    theirs = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)) / MICROBATCHES
    nodes = ours(model, batches, LATER, whole=False)[name].nodes[0]
    assert np.sum(np.abs(nodes - nodes[-1]) < CLOSE * nodes[-1]) == 1
    assert np.sum(np.abs(theirs - nodes[-1]) < CLOSE * nodes[-1]) > 1
