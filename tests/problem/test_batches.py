"""Batches as users give them."""

from __future__ import annotations

import weakref
from collections import namedtuple
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BatchEncoding
from transformers.utils import ModelOutput
from weighed import EQUAL, X, Y, classifier, deviation

from hvp_engine.problem import batches


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    y: torch.Tensor


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    """A batch class as graph libraries have them: attributes, properties, and parts that know their owner."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.store, self.owner = x, {"y": y}, self

    @property
    def y(self) -> torch.Tensor:
        return self.store["y"]


class Storage(MutableMapping[str, torch.Tensor]):
    """Keeps its entries in an attribute and knows whose part it is, as the stores of graph libraries do."""

    def __init__(self, parent: Any, **entries: torch.Tensor) -> None:
        self.entries, self.parent = entries, weakref.ref(parent)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.entries[name]

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class Stored:
    """A batch class that passes attributes on to a store, and can be called."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.__dict__["store"] = Storage(self, x=x, y=y)

    def __getattr__(self, name: str) -> torch.Tensor:
        if name not in ("x", "y"):
            raise AttributeError(name)
        return self.store.parent().__dict__["store"][name]

    def __setattr__(self, name: str, value: Any) -> None:
        self.store[name] = value

    def __copy__(self) -> Stored:
        return Stored(self.x, self.y)

    def __call__(self) -> Iterator[Any]:
        return iter(self.store.items())


class Attributes(dict[str, torch.Tensor]):
    def __getattr__(self, name: str) -> torch.Tensor:
        return self[name]


@dataclass
class BaseOutput(ModelOutput):
    x: torch.Tensor | None = None
    y: torch.Tensor | None = None


Named = namedtuple("Named", "x y")
KINDS: dict[str, Any] = {
    "frozen dataclass": Frozen,
    "dataclass with slots": Slotted,
    "named tuple": Named,
    "namespace": lambda x, y: SimpleNamespace(x=x, y=y),
    "graph": Graph,
    "graph with a store": Stored,
    "ordered dictionary": lambda x, y: BaseOutput(x=x, y=y),
    "dictionary with attributes": lambda x, y: Attributes(x=x, y=y),
    "encoding": lambda x, y: BatchEncoding({"x": x, "y": y}),
}


def test_batches_of_every_kind_are_mapped_cut_and_fingerprinted() -> None:
    x = torch.arange(12).reshape(4, 3)
    nested = {"a": x, "b": (x + 1, [x + 2]), "name": "kept", "scale": torch.tensor(2.0)}
    half = batches.cut(nested, 1, 3)
    assert torch.equal(half["b"][1][0], x[1:3] + 2)
    assert half["name"] == "kept"
    assert float(half["scale"]) == 2.0
    assert batches.samples(nested) == 4
    assert batches.samples((x, torch.ones(3))) is None
    assert batches.leading("nothing") is None
    assert batches.fingerprint(nested) == batches.fingerprint(dict(nested))
    assert batches.fingerprint(x) != batches.fingerprint(x.float())
    assert batches.fingerprint(x) != batches.fingerprint(x.reshape(3, 4))


def test_the_largest_batch_is_the_first_with_the_most_numbers() -> None:
    small, large, other = torch.ones(3), (torch.ones(2), torch.ones(2, 2)), {"x": torch.zeros(6)}
    assert batches.numel(large) == 6
    assert batches.largest(iter([small, large, other])) is large
    assert batches.largest([]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_keeps_its_class_and_its_tensors_are_moved_and_cut(kind: str) -> None:
    batch = KINDS[kind](X, Y)
    doubled = batches.moved(batch, torch.device("cpu"), torch.float64)
    assert type(doubled) is type(batch)
    assert doubled.x.dtype == torch.float64
    assert batch.x.dtype == torch.float32
    piece = batches.cut(batch, 2, 5)
    assert type(piece) is type(batch)
    assert torch.equal(piece.y, Y[2:5])
    assert batches.samples(batch) == 16
    assert batches.fingerprint(batch) == batches.fingerprint(KINDS[kind](X.clone(), Y.clone()))
    assert batches.fingerprint(batch) != batches.fingerprint(KINDS[kind](X, Y.flip(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_products_over_batches_of_every_class_are_right(kind: str) -> None:
    data = [KINDS[kind](x, y) for x, y in EQUAL]
    loss = lambda m, b: F.cross_entropy(m(b.x), b.y)  # noqa: E731
    assert deviation(classifier(), loss, data, precision="fp64", microbatch=3) < 1e-12


@pytest.mark.parametrize("form", [lambda y: y.tolist(), lambda y: tuple(y.tolist()), lambda y: y.numpy()])
def test_labels_that_are_no_tensors_are_cut_with_the_samples_and_fingerprinted(form: Any) -> None:
    data = [(x, form(y)) for x, y in EQUAL]
    loss = lambda m, b: F.cross_entropy(m(b[0]), torch.as_tensor(b[1]))  # noqa: E731
    for options in ({}, {"microbatch": 3}):
        assert deviation(classifier(), loss, data, **options) < 1e-6
    ragged = [(X[:10], form(Y[:10])), (X[10:], form(Y[10:]))]
    assert deviation(classifier(), loss, ragged) < 1e-6
    assert batches.fingerprint(data[0]) != batches.fingerprint((data[0][0], form((EQUAL[0][1] + 1) % 3)))


def test_arrays_alone_are_a_batch_and_follow_the_precision() -> None:
    data = [(X.numpy(), Y.numpy())]
    loss = lambda m, b: F.cross_entropy(m(torch.as_tensor(b[0])), torch.as_tensor(b[1]))  # noqa: E731
    assert deviation(classifier(), loss, data, precision="fp64") < 1e-12


def test_what_does_not_count_samples_is_passed_on_whole() -> None:
    batch = {"x": X, "classes": ["a", "b", "c"], "ids": [f"s{i}" for i in range(16)], "scale": 2.0}
    piece = batches.cut(batch, 4, 6)
    assert piece["ids"] == ["s4", "s5"]
    assert piece["classes"] == ["a", "b", "c"]
    objects = [X, [object() for _ in range(3)]]
    assert batches.fingerprint(objects) == batches.fingerprint([X, [object() for _ in range(3)]])


def test_two_batches_are_joined_where_they_differ_in_their_samples_alone() -> None:
    one, other = {"x": X[:3], "ids": [1, 2, 3], "t": 1}, {"x": X[3:5], "ids": [4, 5], "t": 1}
    both = batches.joined(one, other)
    assert torch.equal(both["x"], X[:5])
    assert both["ids"] == [1, 2, 3, 4, 5]
    assert batches.joined(one, {**other, "t": 2}) is None
    assert batches.joined(one, {**other, "x": X[3:5, :2]}) is None
    assert batches.joined(one, {**other, "y": 0}) is None


LINKS = (torch.rand(16, 16, generator=torch.Generator().manual_seed(3)) < 0.3).float() + torch.eye(16)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.parametrize("sparse", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_are_moved_and_fingerprinted_and_never_cut(sparse: str) -> None:
    links = getattr(LINKS, sparse)()
    batch = (X, links, Y)
    assert batches.samples(batch) is None
    assert batches.few_samples(batch) is batch
    assert batches.fingerprint(batch) == batches.fingerprint((X, getattr(LINKS, sparse)(), Y))
    assert batches.fingerprint(batch) != batches.fingerprint((X, getattr(2 * LINKS, sparse)(), Y))
    assert batches.moved(batch, torch.device("cpu"), torch.float64)[1].dtype == torch.float64


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_products_over_nested_tensors_are_right(layout: torch.layout, precision: str) -> None:
    pieces, labels = [X[:3], X[3:5]], torch.tensor([0, 2])
    nested = torch.nested.nested_tensor(pieces, layout=layout)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(torch.stack([model(piece).mean(0) for piece in batch[0].unbind()]), batch[1])

    def right(model: Any) -> torch.Tensor:
        return F.cross_entropy(torch.stack([model(piece.double()).mean(0) for piece in pieces]), labels)

    assert deviation(classifier(), loss, [(nested, labels)], right, precision=precision) < 1e-6
    changed = torch.nested.nested_tensor([X[:2], X[2:5]], layout=layout)
    assert batches.fingerprint(nested) != batches.fingerprint(changed)


def test_packed_sequences_are_moved_and_never_cut() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([X[:3], X[3:5]])
    assert batches.samples(packed) is None
    doubled = batches.moved(packed, torch.device("cpu"), torch.float64)
    assert doubled.data.dtype == torch.float64
    assert torch.equal(doubled.batch_sizes, packed.batch_sizes)


def test_arrays_of_objects_are_fingerprinted_by_their_entries() -> None:
    names = np.array(["a", "b"], dtype=object)
    assert batches.fingerprint((X, names)) == batches.fingerprint((X, names.copy()))
    assert batches.fingerprint((X, names)) != batches.fingerprint((X, names[::-1]))
