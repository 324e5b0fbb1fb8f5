"""Tensors are found by what they do: the papers' lists in every library's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.models.with_head import WithHead
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import every_tensor, is_key_bias, layer_of, listed_tensors, role_of
from hvp_engine.experiments.studied_paper import NETWORKS
from hvp_engine.experiments.zoo import zoo


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("roberta.encoder.layer.3.attention.self.query.weight", "query", 3),
        ("encoder.layer.0.attention.output.dense.weight", "output", 0),
        ("encoder.layer.0.attention.output.LayerNorm.weight", "norm", 0),
        ("encoder.layer.11.intermediate.dense.bias", "fc1", 11),
        ("encoder.layer.0.output.dense.weight", "fc2", 0),
        ("encoder.layers.encoder_layer_6.self_attention.in_proj_weight", "qkv", 6),
        ("encoder.layers.encoder_layer_6.mlp.3.weight", "fc2", 6),
        ("layers.2.attention.k_proj.weight", "key", 2),
        ("layers.1.c_fc.weight", "fc1", 1),
        ("layers.1.attn.wo.weight", "output", 1),
        ("layers.1.ln_2.weight", "norm", 1),
        ("layers.0.feedforward.fc2.weight", "fc2", 0),
        ("model.layers.29.mlp.gate_proj.weight", "other", 29),
        ("features.norm_0_1.weight", "norm", None),
        ("features.conv_0_1.weight", "convolution", None),
        ("_blocks.15._bn1.weight", "norm", 15),
        ("embeddings.position_embeddings.weight", "embedding", None),
        ("embeddings.LayerNorm.weight", "norm", None),
        ("wte.weight", "embedding", None),
        ("classifier.1.weight", "head", None),
        ("_fc.weight", "head", None),
    ],
)
def test_a_name_tells_role_and_layer(name: str, role: str, layer: int | None) -> None:
    assert (role_of(name), layer_of(name)) == (role, layer)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        # A layer of d 768: three projections, two MLP weights, two norms; and a head of two classes.
        ("roberta-base", 22, 3 * (3 * 768**2 + 2 * 4 * 768**2 + 2 * 768) + 2 * 768),
        ("vit-b16", 16, 3 * (3 * 768**2 + 2 * 4 * 768**2 + 2 * 768) + 2 * 768),
        # ResNet-18: 12 convolutions of 3 x 3, two shortcuts, six norms, a head.
        (
            "resnet-18",
            21,
            9 * (4 * 64**2 + 128 * 256 + 3 * 256**2 + 256 * 512 + 3 * 512**2)
            + (128 * 256 + 256 * 512)
            + 2 * (64 + 256 + 512)
            + 2 * 512,
        ),
    ],
)
def test_the_papers_networks_have_the_papers_tensors(name: str, tensors: int, parameters: int) -> None:
    network = NETWORKS[name]
    with torch.device("meta"):
        model = WithHead(network.skeleton(), network.features, 2, 0)
    blocks = listed_tensors(model, network.fused)
    found = dict(model.named_parameters())
    assert len(blocks) == tensors
    assert sum(found[part].numel() for parts in blocks.values() for part in parts) == parameters


def test_robertas_list_is_the_one_of_the_released_code() -> None:
    with torch.device("meta"):
        model = WithHead(NETWORKS["roberta-base"].skeleton(), 768, 2, 0)
    layer = (
        "attention.output.LayerNorm", "attention.self.query", "attention.self.key", "attention.self.value",
        "intermediate.dense", "output.LayerNorm", "output.dense",
    )  # fmt: skip
    wanted = {f"body.encoder.layer.{i}.{part}" for i in (0, 6, 11) for part in layer} | {"head"}
    assert set(listed_tensors(model)) == wanted


def test_networks_of_the_zoo_have_lists_of_the_same_lengths(tmp_path: Path) -> None:
    entries = zoo(Setting("small", 1, tmp_path))
    assert len(listed_tensors(entries["resnet"].meta())) == 21
    assert len(listed_tensors(entries["vit"].meta())) == 22


def test_a_network_of_unknown_names_has_no_list() -> None:
    with pytest.raises(ConfigurationError, match="No layers of a Transformer"):
        listed_tensors(nn.Sequential(nn.Linear(2, 3)))


def test_every_tensor_is_a_block_but_biases_of_keys(tmp_path: Path) -> None:
    model = zoo(Setting("tiny", 1, tmp_path))["vit"].meta()
    left_out = {name for name, _ in model.named_parameters()} - set(every_tensor(model))
    assert left_out == {f"layers.{layer}.attention.key.bias" for layer in range(2)}
    assert all(is_key_bias(name) for name in left_out)
