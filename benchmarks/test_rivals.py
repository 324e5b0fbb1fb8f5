"""One Hessian product and a small SLQ run against other packages, on two sequences of the laptop job.

Run with `pytest -s benchmarks/test_rivals.py`; ratios are of medians timed alternately, kept in `extra_info`.
Products are timed in series, as Lanczos takes them: whoever keeps a gradient graph between products may do so. The
ratio with an operator of ours built anew for each product is kept beside. Every rival uses PyTorch's math attention,
because its other kernels have no second derivatives.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from jobs import gpt_job, mean_loss
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine

STEPS, PROBES, SEQUENCES = 10, 2, 2
TOLERANCE = 1e-4
Problem = tuple[nn.Module, Tensor]
Product = Callable[[Tensor], Tensor]  # of the full Hessian with a flat vector
Quadrature = Callable[[], Tensor | None]  # nodes (probes, steps), None where the package keeps them to itself
# The rivals warn about their own use of PyTorch (torch.jit.script, backward with create_graph).
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two threads for everybody."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def problem() -> Problem:
    """Model and tokens (sequences, length), fresh for every test because some rivals leave gradients in the model."""
    job = gpt_job("laptop")
    return job.model, job.data[0][:SEQUENCES].clone()


def shifted_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy from logits (batch, tokens, vocabulary)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def plain_layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: None, eps: float) -> Tensor:
    """F.layer_norm over the last dimension, in operations that every transform differentiates right."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


class Shifted(nn.Module):
    """Logits of all tokens but the last, one row per target."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to logits (batch * (length - 1), vocabulary)."""
        return self.model(tokens)[:, :-1].flatten(0, 1)


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Measure the seconds per call, timed alternately after one call of each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def with_math_attention(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same call with the attention that can be differentiated twice."""

    def wrapped(*args: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return call(*args)

    return wrapped


def compare(benchmark: Any, task: str, problem: Problem, product: Product, slq: Quadrature) -> None:
    """Check the rival's results, then time both in one run."""
    model, tokens = problem
    product, slq = with_math_attention(product), with_math_attention(slq)

    def build() -> hvp_engine.HessianOperator:
        return hvp_engine.HessianOperator(model, hvp_engine.losses.causal_lm, data=[tokens])

    def our_slq() -> Any:
        options = {"data": [tokens], "steps": STEPS, "probes": PROBES, "check": False, "progress": False}
        return hvp_engine.slq(model, hvp_engine.losses.causal_lm, **options)

    kept = build()
    vector = torch.randn(kept.numel["full"], generator=torch.Generator().manual_seed(1))
    vector /= vector.norm()
    expected = kept.matmat({"full": vector[None]})["full"][0]
    error = float((product(vector).detach() - expected).norm() / expected.norm())
    assert error < TOLERANCE
    benchmark.extra_info["relative_difference"] = error
    if task == "hvp":

        def ours() -> object:
            return kept.matmat({"full": vector[None]})

        calls = {"ours": ours, "rival": lambda: product(vector)}
        times = medians({**calls, "ours_fresh": lambda: build().matmat({"full": vector[None]})}, rounds=5)
        benchmark.extra_info["times_faster_fresh"] = round(times["rival"] / times["ours_fresh"], 2)
    else:
        ours, theirs, largest = our_slq, slq(), our_slq()["full"].nodes.max()
        if theirs is not None:
            # The probes differ: only the top of the spectrum can be compared, which no Lanczos node may exceed.
            assert theirs.shape == (PROBES, STEPS)
            assert 0.8 * largest < float(theirs.max()) < 1.05 * largest
        times = medians({"ours": our_slq, "rival": slq}, rounds=3)
    benchmark.extra_info.update({f"{name}_ms": round(1e3 * value, 1) for name, value in times.items()})
    benchmark.extra_info["times_faster"] = round(times["rival"] / times["ours"], 2)
    print(f"\n{task}: {benchmark.extra_info}")
    benchmark.pedantic(ours, rounds=3)


TASKS = pytest.mark.parametrize("task", ["hvp", "slq"])


@TASKS
def test_hessian_eigenthings(benchmark: Any, problem: Problem, task: str) -> None:
    """A forward and two backwards per product; its SLQ reorthogonalises fully, as ours does."""
    rival = pytest.importorskip("hessian_eigenthings")
    model, tokens = problem
    operator = rival.HessianOperator(model, [tokens], mean_loss)

    def slq() -> Tensor:
        return rival.spectral_density(operator, num_runs=PROBES, lanczos_steps=STEPS).raw_eigenvalues

    compare(benchmark, task, problem, operator.matvec, slq)


@TASKS
def test_curvlinops(benchmark: Any, problem: Problem, task: str) -> None:
    """Forward over reverse with torch.func; its SLQ does not reorthogonalise.

    It would first find both ends of the spectrum with ARPACK; it is given them, so that only the Lanczos runs count.
    Under its transforms PyTorch 2.13 differentiates F.layer_norm wrongly (1.6e-3 of the product, in fp64 too), so that
    function is plain arithmetic while the rival runs; the time with the wrong one is kept beside.
    """
    rival = pytest.importorskip("curvlinops")
    model, tokens = problem
    spectra = pytest.importorskip("curvlinops.papyan2020traces.spectrum")
    data = [(tokens, tokens[:, 1:].flatten())]
    parameters = list(model.parameters())
    operator = rival.HessianLinearOperator(
        Shifted(model), nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
    )

    def slq() -> None:
        spectra.lanczos_approximate_spectrum(operator, STEPS, num_repeats=PROBES, boundaries=(-1.0, 1.0))

    vector = torch.ones(sum(p.numel() for p in parameters))
    native = medians({"native": with_math_attention(lambda: operator @ vector)}, rounds=3)["native"]
    benchmark.extra_info["rival_product_native_layer_norm_ms"] = round(1e3 * native, 1)
    plain = mock.patch.object(F, "layer_norm", plain_layer_norm)
    compare(benchmark, task, problem, plain(lambda vector: operator @ vector), plain(slq))


@TASKS
def test_pyhessian(benchmark: Any, monkeypatch: pytest.MonkeyPatch, problem: Problem, task: str) -> None:
    """Given a single batch, which it can keep the gradient graph of: its fast way.

    Its density calls torch.eig, which PyTorch has removed; a stand-in for that small matrix lets it run.
    """
    rival = pytest.importorskip("pyhessian")
    model, tokens = problem

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        nodes, vectors = torch.linalg.eigh(matrix)
        return torch.stack([nodes, torch.zeros_like(nodes)], dim=1), vectors

    monkeypatch.setattr(torch, "eig", eig, raising=False)
    batch = (tokens, tokens)
    operator = with_math_attention(lambda: rival.hessian(model, shifted_loss, data=batch, cuda=False))()
    parameters = list(model.parameters())

    def product(vector: Tensor) -> Tensor:
        parts = [
            part.view_as(p) for part, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)
        ]
        products = rival.hessian_vector_product(operator.gradsH, operator.params, parts)
        return torch.cat([p.reshape(-1) for p in products])

    def slq() -> Tensor:
        model.zero_grad()  # its constructor adds to the gradients that are there
        fresh = rival.hessian(model, shifted_loss, data=batch, cuda=False)
        return torch.tensor(fresh.density(iter=STEPS, n_v=PROBES)[0])

    try:
        compare(benchmark, task, problem, product, slq)
    finally:
        model.zero_grad()  # breaks the cycle between parameters and their gradients' graphs


@TASKS
def test_cola(benchmark: Any, problem: Problem, task: str) -> None:
    """Forward over reverse of a function of the flat parameters.

    It has no SLQ of a density; its Lanczos and an eigendecomposition of its tridiagonal matrices are the same work.
    """
    rival = pytest.importorskip("cola")
    model, tokens = problem
    decompositions = pytest.importorskip("cola.linalg.decompositions.lanczos")
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]

    def loss(flat: Tensor) -> Tensor:
        values = {n: v.view_as(p) for n, v, p in zip(names, flat.split(sizes), parameters, strict=True)}
        return shifted_loss(torch.func.functional_call(model, values, (tokens,)), tokens)

    operator = rival.ops.Hessian(loss, torch.cat([p.detach().reshape(-1) for p in parameters]))

    def slq() -> Tensor:
        # Both probes at once, so that one forward pass serves them, as one of ours does.
        start = torch.randint(0, 2, (sum(sizes), PROBES)).float() * 2 - 1
        state = decompositions.init_lanczos(operator.xnp, start, STEPS, operator.dtype)
        _, diagonal, off, *_ = decompositions.lanczos_fact(operator, state, STEPS, 0.0)
        off = off[:, 1:STEPS]
        matrices = diagonal.diag_embed() + off.diag_embed(1) + off.diag_embed(-1)
        return torch.linalg.eigh(matrices)[0]

    compare(benchmark, task, problem, lambda vector: operator @ vector, slq)
