"""Names of blocks in little room: different ones stay different, and keep their layers and parameters."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from strange_names import STRANGE_NAMES

from hvp_engine.results.figures.labels import labels

ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
BERT = [
    *(f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")),
    "bert.embeddings.LayerNorm.weight",
    *(
        f"bert.encoder.layer.{layer}.{module}.{parameter}"
        for layer in range(12)
        for module in (
            *ATTENTION,
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
        for parameter in ("weight", "bias")
    ),
    "classifier.weight",
]
LLAMA = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{module}.weight"
        for layer in range(12)
        for module in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
            "input_layernorm",
            "post_attention_layernorm",
        )
    ),
    "lm_head.weight",
]
RESNET = [
    f"resnet.encoder.stages.{stage}.layers.{block}.layer.{layer}.{name}"
    for stage in range(4)
    for block in range(2)
    for layer in range(2)
    for name in ("convolution.weight", "normalization.weight", "normalization.bias")
]
LONG = [f"model.{'layers.' * 20}{i}.{'mlp.' * 20}weight" for i in range(3)]
WORDS = [f"supercalifragilisticexpialidocious_layer_{i}_attention_query_weight_matrix" for i in range(12)]


@pytest.mark.parametrize("names", [BERT, LLAMA, RESNET, LONG, WORDS], ids=["bert", "llama", "resnet", "long", "words"])
@pytest.mark.parametrize("room", [24, 32])
def test_labels_differ_fit_and_keep_every_number_that_differs(names, room):
    short = labels(names, room)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= room
    for name, label in zip(names, short, strict=True):
        assert re.findall(r"\d+", label) == re.findall(r"\d+", name)
        assert "#" not in label  # none had to be told apart by its place in the list


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("BertForMaskedLM", {"num_hidden_layers": 12}),
        ("LlamaForCausalLM", {"num_hidden_layers": 12}),
        ("ViTForImageClassification", {}),
        ("ResNetForImageClassification", {}),
        ("GPT2LMHeadModel", {}),
        ("T5ForConditionalGeneration", {}),
    ],
)
def test_parameters_of_real_models_have_titles_of_their_own(model, config):
    kind = getattr(transformers, model)
    with torch.device("meta"):
        names = [name for name, _ in kind(kind.config_class(**config)).named_parameters()]
    short = labels(names, 24)
    assert len(set(short)) == len(names) and max(map(len, short)) <= 24
    assert not any("#" in label for label in short)
    shapes: dict[str, list[tuple[list[str], list[str]]]] = {}
    for name, label in zip(names, short, strict=True):
        numbers = re.findall(r"\d+", name), re.findall(r"\d+", label)
        shapes.setdefault(re.sub(r"\d+", "#", name), []).append(numbers)
    for alike in shapes.values():
        differs = [len(set(column)) > 1 for column in zip(*(numbers for numbers, _ in alike), strict=True)]
        for numbers, kept in alike:
            rest = iter(kept)
            assert all(number in rest for number, told in zip(numbers, differs, strict=True) if told)


def test_a_label_that_leaves_parts_out_fits_one_name_only():
    gap = r"(?:[^.]+\.)+"
    for label in labels(BERT, 32):
        kept = list(map(re.escape, label.split("…")))
        gaps = [rf"\.{gap}" if text else gap for text in kept[:-1]]
        pattern = "".join(text + between for text, between in zip(kept, [*gaps, ""], strict=True))
        if not label.endswith("…"):
            assert sum(re.fullmatch(pattern, name) is not None for name in BERT) == 1
    assert {"…layer.0…query.weight", "…layer.11…query.weight"} <= set(labels(BERT, 24))


def test_names_that_fit_stay_whole():
    names = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.bias"]
    assert labels(names, 24) == names
    assert labels([*names, BERT[4]], 24)[:3] == names


@pytest.mark.parametrize("room", [8, 24])
def test_strange_names_differ_too(room):
    short = labels([*STRANGE_NAMES, *BERT], room)
    assert len(set(short)) == len(short)
    assert all(label.isprintable() for label in short)


def test_one_name_alone_keeps_its_ends():
    (label,) = labels(["transformer.blocks.attention.output.projection.weight"], 24)
    assert label.endswith("weight") and len(label) <= 24
