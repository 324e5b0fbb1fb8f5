"""Jobs whose model or data hold sparse or nested tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

generator = torch.Generator().manual_seed(0)
LINKS = (torch.rand(12, 12, generator=generator) < 0.3).float() / 3
X, Y = torch.randn(12, 4, generator=generator), torch.randint(0, 3, (12,), generator=generator)
VECTORS = {"full": torch.randn(2, 15, generator=generator)}
SPARSE = {
    "coo": LINKS.to_sparse,
    "not coalesced": lambda: torch.sparse_coo_tensor(
        LINKS.nonzero().t().repeat(1, 2), LINKS[LINKS != 0].repeat(2) / 2, (12, 12), check_invariants=True
    ),
    "csr": LINKS.to_sparse_csr,
    "csc": LINKS.to_sparse_csc,
}
RAGGED = [X[:3], X[3:5], X[5:]]


def head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


class Graph(nn.Module):
    """A graph network whose links are a buffer."""

    def __init__(self, links: Tensor) -> None:
        super().__init__()
        self.head = head()
        self.links: Tensor
        self.register_buffer("links", links.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.links @ self.head(x)


def of_nodes(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    features, links, labels = batch
    return F.cross_entropy(links @ model(features), labels)


def right(links: Tensor = LINKS) -> Tensor:
    return he.hvp(Graph(links), he.losses.classification, VECTORS, data=[(X, Y)], precision="fp64")["full"]


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_sparse_buffer_serves_as_a_dense_one_does(layout: str, precision: Any, tmp_path: Path) -> None:
    model, data = Graph(SPARSE[layout]()), [(X, Y)]
    check(he.hvp(model, he.losses.classification, VECTORS, data=data, precision=precision)["full"], right())
    he.slq(model, he.losses.classification, data=data, steps=3, probes=1, precision=precision, out=tmp_path / "run")
    assert he.doctor(model, he.losses.classification, data=data, seconds=2, precision=precision).ok


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_sparse_tensor_in_a_batch_serves_as_a_dense_one_does(layout: str, precision: Any, tmp_path: Path) -> None:
    data = [(X, SPARSE[layout](), Y)]
    check(he.hvp(head(), of_nodes, VECTORS, data=data, precision=precision)["full"], right())
    he.slq(head(), of_nodes, data=data, steps=3, probes=1, precision=precision, out=tmp_path / "run")
    assert he.doctor(head(), of_nodes, data=data, seconds=2, precision=precision).ok


def test_another_sparse_buffer_is_another_hessian() -> None:
    model = Graph(SPARSE["coo"]())
    operator = he.HessianOperator(model, he.losses.classification, data=[(X, Y)])
    operator.matmat(VECTORS)
    model.links = (2 * LINKS).to_sparse()
    check(operator.matmat(VECTORS)["full"], right(2 * LINKS))
    model.links.values().mul_(0.5)
    check(operator.matmat(VECTORS)["full"], right())


def test_a_batch_with_a_sparse_tensor_is_not_split() -> None:
    with pytest.raises(he.HvpEngineError, match="microbatch"):
        he.slq(head(), of_nodes, data=[(X, SPARSE["coo"](), Y)], steps=2, probes=1, microbatch=2)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_nested_tensors_in_a_batch_serve(layout: torch.layout, precision: Any, tmp_path: Path) -> None:
    labels = torch.tensor([0, 2, 1])

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(torch.stack([model(part).mean(0) for part in batch[0].unbind()]), batch[1])

    def dense(model: nn.Module) -> Tensor:
        parts = [part.to(next(model.parameters()).dtype) for part in RAGGED]
        return F.cross_entropy(torch.stack([model(part).mean(0) for part in parts]), labels)

    data = [(torch.nested.nested_tensor(RAGGED, layout=layout), labels)]
    check(
        he.hvp(head(), loss, VECTORS, data=data, precision=precision)["full"],
        he.hvp(head(), dense, VECTORS, precision="fp64")["full"],
    )
    he.slq(head(), loss, data=data, steps=2, probes=1, precision=precision, out=tmp_path / "run")
    assert he.doctor(head(), loss, data=data, seconds=2, precision=precision).ok


@pytest.mark.parametrize("kind", ["sparse", "nested"])
def test_a_plan_says_that_it_cannot_count_them(kind: str) -> None:
    extra = SPARSE["csr"]() if kind == "sparse" else torch.nested.nested_tensor(RAGGED)
    with pytest.raises(he.HvpEngineError, match=f"hold a {kind} tensor.* steps=1"):
        he.plan(head(), lambda m, b: F.cross_entropy(m(b[0]), b[2]), data=[(X, extra, Y)], steps=2)


def test_a_plan_counts_a_graph_whose_nodes_are_no_samples() -> None:
    assert he.plan(Graph(LINKS), he.losses.classification, data=[(X, Y)], steps=2)
