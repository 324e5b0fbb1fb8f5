"""One Hessian product and a small SLQ run against other packages, on two sequences of the laptop job.

Run with `pytest -s benchmarks/test_rivals.py`; ratios are of medians timed alternately, kept in `extra_info`.
Products are timed in series, as Lanczos takes them: whoever keeps a gradient graph between products may do so. The
ratio with an operator of ours built anew for each product is kept beside. `speed_table.py` has more networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import rivals
import torch
import torch.nn.functional as F
from jobs import gpt_job
from timing import alternate
from torch import Tensor

import hvp_engine

STEPS, PROBES, SEQUENCES = 10, 2, 2
TOLERANCE = 1e-4
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
def task() -> rivals.Task:
    """Model and tokens, fresh for every test because some rivals leave gradients in the model."""
    job = gpt_job("laptop")
    return rivals.language_task(job.model, job.data[0][:SEQUENCES].clone())


def compare(benchmark: Any, kind: str, name: str, task: rivals.Task, slq: Quadrature) -> None:
    """Check the rival's results, then time both in one run."""
    model, data = task.model.model, [task.inputs]
    product, slq = rivals.RIVALS[name].product(task), rivals.with_math_attention(slq)

    def build() -> hvp_engine.HessianOperator:
        return hvp_engine.HessianOperator(model, hvp_engine.losses.causal_lm, data=data)

    def our_slq() -> Any:
        options = {"data": data, "steps": STEPS, "probes": PROBES, "check": False, "progress": False}
        return hvp_engine.slq(model, hvp_engine.losses.causal_lm, **options)

    kept = build()
    (vector,) = task.vectors(1)
    expected = kept.matmat({"full": vector[None]})["full"][0]
    error = float((product(vector).detach() - expected).norm() / expected.norm())
    assert error < TOLERANCE
    benchmark.extra_info["relative_difference"] = error
    if kind == "hvp":

        def ours() -> object:
            return kept.matmat({"full": vector[None]})

        calls = {"ours": ours, "rival": lambda: product(vector)}
        times = alternate({**calls, "ours_fresh": lambda: build().matmat({"full": vector[None]})}, rounds=5)
        benchmark.extra_info["times_faster_fresh"] = round(times["rival"] / times["ours_fresh"], 2)
    else:
        ours, theirs, largest = our_slq, slq(), our_slq()["full"].nodes.max()
        if theirs is not None:
            # The probes differ: only the top of the spectrum can be compared, which no Lanczos node may exceed.
            assert theirs.shape == (PROBES, STEPS)
            assert 0.8 * largest < float(theirs.max()) < 1.05 * largest
        times = alternate({"ours": our_slq, "rival": slq}, rounds=3)
    benchmark.extra_info.update({f"{name}_ms": round(1e3 * value, 1) for name, value in times.items()})
    benchmark.extra_info["times_faster"] = round(times["rival"] / times["ours"], 2)
    print(f"\n{kind}: {benchmark.extra_info}")
    benchmark.pedantic(ours, rounds=3)


KINDS = pytest.mark.parametrize("kind", ["hvp", "slq"])


@KINDS
def test_hessian_eigenthings(benchmark: Any, task: rivals.Task, kind: str) -> None:
    """Its SLQ reorthogonalises fully, as ours does."""
    package = pytest.importorskip("hessian_eigenthings")
    operator = rivals.eigenthings_operator(task)

    def slq() -> Tensor:
        return package.spectral_density(operator, num_runs=PROBES, lanczos_steps=STEPS).raw_eigenvalues

    compare(benchmark, kind, "hessian-eigenthings", task, slq)


@KINDS
def test_curvlinops(benchmark: Any, task: rivals.Task, kind: str) -> None:
    """Its SLQ does not reorthogonalise.

    It would first find both ends of the spectrum with ARPACK; it is given them, so that only the Lanczos runs count.
    The time of a product with PyTorch's own LayerNorm, which is wrong there, is kept beside.
    """
    pytest.importorskip("curvlinops")
    spectra = pytest.importorskip("curvlinops.papyan2020traces.spectrum")
    operator = rivals.curvlinops_operator(task)

    def slq() -> None:
        spectra.lanczos_approximate_spectrum(operator, STEPS, num_repeats=PROBES, boundaries=(-1.0, 1.0))

    vector = torch.ones(task.numel)
    native = alternate({"native": rivals.with_math_attention(lambda: operator @ vector)}, rounds=3)["native"]
    benchmark.extra_info["rival_product_native_layer_norm_ms"] = round(1e3 * native, 1)
    plain = mock.patch.object(F, "layer_norm", rivals.plain_layer_norm)
    compare(benchmark, kind, "curvlinops", task, plain(slq))


@KINDS
def test_pyhessian(benchmark: Any, monkeypatch: pytest.MonkeyPatch, task: rivals.Task, kind: str) -> None:
    """Its density calls torch.eig, which PyTorch has removed; a stand-in for that small matrix lets it run."""
    pytest.importorskip("pyhessian")

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        nodes, vectors = torch.linalg.eigh(matrix)
        return torch.stack([nodes, torch.zeros_like(nodes)], dim=1), vectors

    monkeypatch.setattr(torch, "eig", eig, raising=False)

    def slq() -> Tensor:
        task.model.zero_grad()  # its constructor adds to the gradients that are there
        return torch.tensor(rivals.pyhessian_operator(task).density(iter=STEPS, n_v=PROBES)[0])

    try:
        compare(benchmark, kind, "PyHessian", task, slq)
    finally:
        task.model.zero_grad()  # breaks the cycle between parameters and their gradients' graphs


@KINDS
def test_cola(benchmark: Any, task: rivals.Task, kind: str) -> None:
    """It has no SLQ of a density; its Lanczos and eigenvalues of its tridiagonal matrices are the same work."""
    pytest.importorskip("cola")
    decompositions = pytest.importorskip("cola.linalg.decompositions.lanczos")
    operator = rivals.cola_operator(task)

    def slq() -> Tensor:
        # Both probes at once, so that one forward pass serves them, as one of ours does.
        start = torch.randint(0, 2, (task.numel, PROBES)).float() * 2 - 1
        state = decompositions.init_lanczos(operator.xnp, start, STEPS, operator.dtype)
        _, diagonal, off, *_ = decompositions.lanczos_fact(operator, state, STEPS, 0.0)
        off = off[:, 1:STEPS]
        matrices = diagonal.diag_embed() + off.diag_embed(1) + off.diag_embed(-1)
        return torch.linalg.eigh(matrices)[0]

    compare(benchmark, kind, "cola", task, slq)
