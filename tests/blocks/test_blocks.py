"""Partitions of the parameters."""

from __future__ import annotations

import re

import pytest
import torch
from problems import gpt, mlp
from torch import nn

import hvp_engine as he
from hvp_engine.blocks import resolve
from hvp_engine.errors import BlockError


def sizes(model: nn.Module, blocks: object) -> dict[str, int]:
    return {name: block.numel for name, block in resolve(model, blocks).blocks.items()}


def test_every_form_of_specification() -> None:
    model = mlp().model
    assert sizes(model, None) == sizes(model, "full") == {"full": 111}
    assert sizes(model, "parameter")["2.weight"] == 42
    assert sizes(model, "module") == {"0": 42, "2": 48, "4": 21}
    assert sizes(model, ["4.bias"]) == {"4.bias": 3}
    assert sizes(model, {"weights": ["*.weight"], "one": "0.bias"}) == {"weights": 95, "one": 7}
    assert sizes(model, ["0.bias", he.Block("part", [("0.weight", slice(0, 2))])]) == {
        "0.bias": 7,
        "part": 10,
    }


def test_tied_parameters_are_one_parameter_with_two_names() -> None:
    model = gpt().model
    by_alias, by_name = resolve(model, ["lm_head.weight"]), resolve(model, ["wte.weight"])
    assert by_alias.parameters == by_name.parameters == ("wte.weight",)
    assert by_alias.notes == ("lm_head.weight is tied to wte.weight: one parameter, counted once",)
    assert sizes(model, {"both": ["wte.weight", "lm_head.weight"]}) == {"both": 13 * 8}
    assert sizes(model, "full")["full"] == sum(p.numel() for p in model.parameters())
    assert "lm_head" not in sizes(model, "module")


def test_frozen_parameters_are_left_out_and_said_to_be() -> None:
    model = mlp().model
    model[0].weight.requires_grad_(False)
    partition = resolve(model, None)
    assert partition.blocks["full"].numel == 76
    assert partition.notes == ("1 frozen parameter(s) left out: 0.weight",)
    assert sizes(model, {"first": ["0.*"]}) == {"first": 7}
    with pytest.raises(BlockError, match=r"'0\.weight' is frozen"):
        resolve(model, ["0.weight"])
    with pytest.raises(BlockError, match="no trainable parameter"):
        resolve(model, {"w": ["0.weight"]})
    with pytest.raises(BlockError, match="No parameter of the model is trainable"):
        resolve(model.requires_grad_(False), None)


def test_unknown_names_show_near_matches() -> None:
    model = gpt().model
    with pytest.raises(BlockError, match=r"no parameter named 'layers\.0\.wq\.weight'.*layers\.0\.attn\.wq\.weight"):
        resolve(model, ["layers.0.wq.weight"])
    with pytest.raises(BlockError, match="no parameter named"):
        resolve(model, {"x": ["nothing.*"]})
    with pytest.raises(BlockError, match="'parameters' is not one of"):
        resolve(model, "parameters")


def test_malformed_specifications() -> None:
    model = mlp().model
    weight = "0.weight"  # (7, 5)
    for parts, match in (
        ([], "is empty"),
        ([(weight, slice(3, 3))], "selects no entry"),
        ([(weight, slice(None, None, -1))], "step below 1"),
        ([(weight, (slice(1),) * 3)], "3 slices for 2 dimensions"),
        ([(weight, 3)], "must be None, a slice"),
        ([(weight, torch.tensor([7]))], "outside the 7 entries"),
        ([(weight, torch.tensor([True] * 7))], "1-d integer tensor"),
        ([(weight, torch.tensor([1, 1]))], "more than once"),
        ([(weight, torch.tensor([1, -6]))], "more than once"),
        ([(weight, slice(0, 3)), (weight, slice(2, 4))], "more than once"),
        ([(weight, None), (weight, slice(2, 4))], "more than once"),
    ):
        with pytest.raises(BlockError, match=match):
            resolve(model, [he.Block("b", parts)])
    with pytest.raises(BlockError, match="Two blocks are named"):
        resolve(model, [weight, weight])
    with pytest.raises(BlockError, match="not int"):
        resolve(model, [3])
    with pytest.raises(BlockError, match=r"not dict;.*blocks=\[he\.Block"):
        resolve(model, {"b": {weight: slice(0, 3)}})  # type: ignore[dict-item]
    with pytest.raises(BlockError, match="specification is empty"):
        resolve(model, [])
    with pytest.raises(BlockError, match="no parameters"):
        resolve(nn.ReLU(), None)


def test_specifications_of_the_wrong_kind_say_which_kinds_there_are() -> None:
    model = mlp().model
    for blocks, match in (
        (re.compile("0.*"), "no block specification"),
        (lambda name: True, "no block specification"),
        (5, "no block specification"),
        ({"a": re.compile("0.*")}, "not Pattern"),
        ({"a": [3]}, "not int"),
        ({"a": [he.Block("x", [("0.weight", None)])]}, "not Block"),
        ({"a": []}, "'a' is empty"),
        ({"": ["*"]}, "non-empty string"),
        ({0: ["*"]}, "non-empty string"),
        ([he.Block("q", ["0.weight"])], "pairs"),  # type: ignore[list-item]
        ([he.Block("q", "0.weight")], "pairs"),  # type: ignore[arg-type]
        ([he.Block("q", [("0.weight", slice(0.5, 2))])], "slice of integers"),
    ):
        with pytest.raises(BlockError, match=match):
            resolve(model, blocks)  # type: ignore[arg-type]
    with pytest.raises(BlockError, match="whole number"):
        he.blocks.heads(model, "0.weight", 3.5)  # type: ignore[arg-type]


def test_parameters_without_a_real_hessian_are_refused_and_empty_ones_left_out() -> None:
    model = nn.Linear(2, 2)
    model.nothing = nn.Parameter(torch.zeros(0))
    assert sizes(model, None) == {"full": 6}
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(BlockError, match="'phase' is complex"):
        resolve(model, None)
    with pytest.raises(BlockError, match="lazy"):
        resolve(nn.LazyLinear(3), None)


def test_heads_and_rows_refuse_what_does_not_divide() -> None:
    model = gpt().model
    names = [block.name for block in he.blocks.heads(model, "layers.*.attn.wq.weight", 4)]
    assert names[:2] == ["layers.0.attn.wq.weight/head0", "layers.0.attn.wq.weight/head1"]
    assert len(names) == 8
    assert len(he.blocks.rows(model, "layers.0.c_fc.weight")) == 32
    with pytest.raises(BlockError, match="not 3 equal parts"):
        he.blocks.heads(model, "layers.0.attn.wq.weight", 3)
    with pytest.raises(BlockError, match="no dimension 1"):
        he.blocks.heads(model, "ln_f.weight", 2, dim=1)


def test_a_name_with_half_a_character_is_refused_before_anything_is_computed() -> None:
    model = gpt().model
    with pytest.raises(BlockError, match="half a character"):
        resolve(model, {"bad \udc80": "ln_f.weight"})
    assert list(resolve(model, {"\x1b[31m $x$ 名前": "ln_f.weight"}).blocks) == ["\x1b[31m $x$ 名前"]
