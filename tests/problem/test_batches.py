"""Batches as users give them."""

from __future__ import annotations

import torch

from hvp_engine.problem import batches


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
