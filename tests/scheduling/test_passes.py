"""Vectors that go through a graph together or one by one, whichever is right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from custom_functions import Sound
from interruptions import interrupted_at
from problems import Case, dense_hessian, mlp
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.blocks import BlockPart, ResolvedBlock
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.passes import FEW, Passes

KEY = (0, 0)
MANY = FEW + 3


def block(name: str = "b") -> ResolvedBlock:
    parts = (BlockPart("w", None, torch.Size([2, 3]), 6), BlockPart("c", None, torch.Size([1]), 1))
    return ResolvedBlock(name, parts, 7)


class Graph:
    """Multiplies by a matrix; what a batched pass makes of the products is given."""

    weight = 1.0

    def __init__(
        self, batched: Callable[[Tensor], Tensor] = lambda products: products, batchable: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(7, 7, generator=generator)
        self.batchable = batchable
        self.passes: list[str] = []
        self._batched = batched

    def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        self.passes += [f"all {len(vectors)}"] if batched else ["one"] * len(vectors)
        products = vectors @ self.matrix
        out.add_(self._batched(products) if batched else products)


def multiply(passes: Passes, graph: Graph, count: int = MANY, key: tuple[int, int] = KEY, name: str = "b") -> Tensor:
    vectors = torch.randn(count, 7, generator=torch.Generator().manual_seed(1))
    out = torch.ones(count, 7)
    passes.multiply(key, graph, block(name), vectors, out)
    torch.testing.assert_close(out - 1, vectors @ graph.matrix)
    return out


def test_a_graph_known_to_be_right_goes_batched_without_a_comparison() -> None:
    passes, graph = Passes("fp32"), Graph(batchable=True)
    for count in (2, MANY, 1):
        multiply(passes, graph, count)
    assert graph.passes == ["all 2", f"all {MANY}", "one"]
    assert passes.note is None


def test_any_other_graph_is_compared_once_for_each_micro_batch_and_block() -> None:
    passes, graph = Passes("fp32"), Graph()
    for key in (KEY, (1, 0)):
        for name in ("b", "c"):
            for _ in range(3):
                multiply(passes, graph, key=key, name=name)
    assert graph.passes == 4 * [f"all {MANY}", "one", "one", f"all {MANY}", f"all {MANY}"]
    assert passes.note is None


def test_a_comparison_is_not_paid_for_a_few_vectors_whatever_went_before() -> None:
    passes, graph = Passes("fp32"), Graph()
    multiply(passes, graph, FEW)
    multiply(passes, graph, MANY)
    multiply(passes, graph, FEW)
    assert graph.passes == FEW * ["one"] + [f"all {MANY}", "one", "one"] + FEW * ["one"]


def test_a_compared_batched_pass_has_the_bits_of_one_that_was_not() -> None:
    first, graph = Passes("fp32"), Graph()
    assert torch.equal(multiply(first, graph), multiply(first, graph))


def broken(products: Tensor) -> Tensor:
    raise AssertionError


@pytest.mark.parametrize(
    ("batched", "reason"),
    [
        (lambda products: products.roll(1, 0), "other products than alone"),
        (lambda products: products * (1 + 1e-2), "relative difference 0.01"),
        (lambda products: torch.cat([products[:, :-1], 0 * products[:, -1:]], 1), "relative difference 1"),
        (lambda products: products * float("nan"), "relative difference inf"),
        (broken, "fail (AssertionError)"),
    ],
)
def test_what_is_wrong_or_fails_together_goes_one_by_one(batched: Callable[[Tensor], Tensor], reason: str) -> None:
    passes, graph = Passes("fp32"), Graph(batched)
    multiply(passes, graph)
    assert passes.note is not None and reason in passes.note and "block 'b'" in passes.note
    graph.passes.clear()
    multiply(passes, graph)
    multiply(passes, graph, key=(1, 0))  # not tried again in another micro-batch
    assert graph.passes == 2 * MANY * ["one"]


def noted(graph: Graph, precision: Precision = "fp32") -> str | None:
    passes = Passes(precision)
    vectors = torch.randn(MANY, 7, generator=torch.Generator().manual_seed(1))
    passes.multiply(KEY, graph, block(), vectors, torch.zeros(MANY, 7))
    return passes.note


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-5), ("tf32", 1e-3), ("bf16", 1e-2)])
def test_rounding_is_no_difference(precision: Precision, noise: float) -> None:
    assert noted(Graph(lambda products: products * (1 + noise)), precision) is None
    assert noted(Graph(lambda products: products * (1 + 30 * noise)), "fp64") is not None


def test_rounding_is_no_difference_where_a_product_cancels_to_less() -> None:
    class Cancelling(Graph):
        def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
            small = vectors @ self.matrix
            large = (3e5 if batched else 1e5) * small
            out.add_((small + large) - large)

    assert noted(Cancelling()) is None


def test_a_lack_of_memory_and_what_fails_for_one_vector_are_no_matter_of_batching() -> None:
    def exhausted(products: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        multiply(Passes("fp32"), Graph(exhausted))

    class Failing(Graph):
        def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
            raise ValueError("together" if batched else "alone")

    passes = Passes("fp32")
    with pytest.raises(ValueError, match="alone"):
        multiply(passes, Failing())
    assert passes.note is None


def normalised(groups: int, *sizes: int) -> Case:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(groups, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    data = [(torch.randn(n, 2, 2, 2), torch.randint(0, 3, (n,))) for n in sizes]
    return Case(model, he.losses.classification, data)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1, 3), (2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_normalisation_is_right_for_any_number_of_vectors(groups: int, sizes: tuple[int, ...]) -> None:
    case = normalised(groups, *sizes)
    hessian = dense_hessian(case, batched=False)
    for microbatch in (None, 1):
        operator = he.HessianOperator(case.model, case.loss, data=case.data, precision="fp64", microbatch=microbatch)
        for count in (1, 2, MANY):
            vectors = torch.randn(count, len(hessian), dtype=torch.float64)
            found = operator.matmat({"full": vectors})["full"]
            torch.testing.assert_close(found, vectors @ hessian, rtol=1e-9, atol=1e-11)


def test_a_job_says_once_that_its_vectors_go_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    case = normalised(1, 1, 1, 1)
    with caplog.at_level(logging.WARNING, "hvp_engine"):
        spectra = he.slq(case.model, case.loss, "parameter", data=case.data, steps=4, probes=MANY, progress=False)
    note = spectra.manifest["plan"]["single_passes"]
    assert "go one by one" in note
    assert [record.getMessage() for record in caplog.records] == [f"slower than it might be: {note}"]
    sound = mlp()
    manifest = he.slq(sound.model, sound.loss, data=sound.data, steps=2, probes=MANY, progress=False).manifest
    assert "single_passes" not in manifest["plan"]


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        wave: Tensor = Sound.apply(x)
        return wave


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_job_chooses_the_same_passes(tmp_path: Path, stop: int) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(5, 6), Wave(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    data = [(torch.randn(n, 5), torch.randint(0, 3, (n,))) for n in (1, 4, 2)]
    options = {"data": data, "steps": 8, "probes": MANY, "progress": False, "check": False}
    blocks = {"small": ["4.bias"], "all": ["*"], "first": ["0.*"]}  # the smallest ends after 3 steps

    def run(out: Path | None) -> he.Spectra:
        return he.slq(model, he.losses.classification, blocks, out=out, **options)

    wanted = run(None)
    with interrupted_at(stop, BatchedLanczos):
        run(tmp_path)
    found = run(tmp_path)
    for name in blocks:
        assert (found[name].nodes == wanted[name].nodes).all()
