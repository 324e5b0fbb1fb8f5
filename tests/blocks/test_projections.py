"""Blocks of heads, queries, keys and values, where layers keep them in different ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import BlockError

WIDTH, HEADS = 12, 3


class Conv1D(nn.Module):
    """A layer that keeps (inputs, outputs), as that of the same name in transformers."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    """Queries, keys and values stacked, read as GPT-2 reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.c_attn(x).split(WIDTH, dim=-1))


class BloomAttention(nn.Module):
    """Queries, keys and values of one head after the other, read as BLOOM reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        fused = self.query_key_value(x).view(-1, HEADS, 3, WIDTH // HEADS)
        return tuple(fused[:, :, i].reshape(-1, WIDTH) for i in range(3))


class Own(nn.Module):
    """A fused projection of a class that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)


GPT2Attention.__module__ = BloomAttention.__module__ = "transformers.models"
FUSED = {"gpt2": (GPT2Attention, "c_attn"), "bloom": (BloomAttention, "query_key_value")}


def moved(model: nn.Module, block: he.Block, x: Tensor) -> list[list[bool]]:
    """Say which outputs of queries, keys and values change, head by head, when a block's entries do."""
    before = model.parts(x)
    with torch.no_grad():
        for name, index in block.parts:
            model.get_parameter(name)[... if index is None else index] += 1.0
    changed = [(a != b).any(0).view(HEADS, -1) for a, b in zip(before, model.parts(x), strict=True)]
    assert all(bool(head.all() | ~head.any()) for part in changed for head in part)
    return [part.any(1).tolist() for part in changed]


@pytest.mark.parametrize("leaf", ["weight", "bias"])
@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("number", range(3))
def test_projections_hold_the_outputs_that_they_are_named_after(kind: str, leaf: str, number: int) -> None:
    make, layer = FUSED[kind]
    model = make()
    block = he.blocks.projections(model, f"{layer}.{leaf}")[number]
    assert block.name == f"{layer}.{leaf}/{'qkv'[number]}"
    assert moved(model, block, torch.rand(4, WIDTH) + 1) == [[i == number] * HEADS for i in range(3)]


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("number", range(3))
def test_heads_of_a_fused_projection_are_heads_of_queries_keys_and_values(kind: str, number: int) -> None:
    make, layer = FUSED[kind]
    model = make()
    blocks = {block.name: block for block in he.blocks.heads(model, f"{layer}.weight", HEADS)}
    assert len(blocks) == 3 * HEADS
    wanted = [[i == number and head == 1 for head in range(HEADS)] for i in range(3)]
    assert moved(model, blocks[f"{layer}.weight/{'qkv'[number]}/head1"], torch.rand(4, WIDTH) + 1) == wanted


def test_outputs_and_inputs_of_a_transposed_layer_are_found_where_they_lie() -> None:
    model = GPT2Attention()
    (first, *_) = he.blocks.heads(model, "c_proj.weight", HEADS, dim=1)
    assert first.parts[0][1] == (slice(0, 4),)  # the inputs of the output projection are its rows
    (row, *rest) = he.blocks.rows(model, "c_proj.weight")
    assert row.parts[0][1] == (slice(None), slice(0, 1))
    assert len(rest) == WIDTH - 1


@pytest.mark.parametrize("name", ["q", "layer0/q", "query", "attn_k", "my.value"])
def test_a_block_named_after_queries_that_holds_parts_of_all_is_refused(name: str) -> None:
    with pytest.raises(BlockError, match="outputs along dimension 1.*projections"):
        he.blocks.resolve(GPT2Attention(), [he.Block(name, [("c_attn.weight", slice(0, WIDTH))])])


def test_a_block_named_after_queries_that_holds_queries_is_taken_and_so_is_another_name() -> None:
    model = GPT2Attention()
    right = he.Block("q", [("c_attn.weight", (slice(None), slice(0, WIDTH)))])
    other = he.Block("first inputs", [("c_attn.weight", slice(0, 4))])
    assert he.blocks.resolve(model, [right, other]).numel == {"q": WIDTH**2, "first inputs": 4 * 3 * WIDTH}
    with pytest.raises(BlockError, match="per head"):
        he.blocks.resolve(BloomAttention(), [he.Block("q", [("query_key_value.weight", slice(0, WIDTH))])])


def test_what_is_not_certain_is_asked_for() -> None:
    with pytest.raises(BlockError, match='layout="stacked"'):
        he.blocks.projections(Own(), "qkv.weight")
    with pytest.raises(BlockError, match='layout="stacked"'):
        he.blocks.heads(Own(), "qkv.weight", HEADS)
    stacked = he.blocks.projections(Own(), "qkv.weight", layout="stacked")
    assert [block.parts[0][1] for block in stacked] == [slice(0, 12), slice(12, 24), slice(24, 36)]
    with pytest.raises(BlockError, match="pass num_heads"):
        he.blocks.projections(Own(), "qkv.weight", layout="per_head")
    per_head = he.blocks.projections(Own(), "qkv.weight", HEADS, layout="per_head")
    assert [index for _, index in per_head[1].parts] == [slice(4, 8), slice(16, 20), slice(28, 32)]


def test_a_module_that_says_otherwise_is_believed() -> None:
    with pytest.raises(BlockError, match="has 3 heads"):
        he.blocks.heads(GPT2Attention(), "c_attn.weight", 4)
    with pytest.raises(BlockError, match="has 3 heads there"):
        he.blocks.heads(GPT2Attention(), "c_proj.weight", 4, dim=1)
    with pytest.raises(BlockError, match="laid out 'stacked'"):
        he.blocks.projections(GPT2Attention(), "c_attn.weight", layout="per_head")
    with pytest.raises(BlockError, match="Nothing says"):
        he.blocks.projections(GPT2Attention(), "c_proj.weight")


def test_torchs_own_attention_is_known() -> None:
    blocks = he.blocks.projections(nn.MultiheadAttention(8, 2), ["in_proj_weight", "in_proj_bias"])
    assert [block.name for block in blocks][3:] == ["in_proj_bias/q", "in_proj_bias/k", "in_proj_bias/v"]
    assert len(he.blocks.heads(nn.MultiheadAttention(8, 2), "in_proj_weight", 2)) == 6


def test_data_in_the_place_of_blocks_is_recognised() -> None:
    with pytest.raises(BlockError, match="data=..."):
        he.blocks.resolve(Own(), [(torch.ones(2, WIDTH), torch.ones(2))])  # type: ignore[list-item]
