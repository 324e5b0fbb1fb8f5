"""Architectures of transformers, randomly initialised, without dropout; and their weights by role."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hvp_engine.errors import ConfigurationError

ROLES: Mapping[str, tuple[str, ...]] = {
    "query": ("*layer*.{i}.attention.*query.weight", "*layer*.{i}.attention.q_proj.weight"),
    "key": ("*layer*.{i}.attention.*key.weight", "*layer*.{i}.attention.k_proj.weight"),
    "value": ("*layer*.{i}.attention.*value.weight", "*layer*.{i}.attention.v_proj.weight"),
    "output": ("*layer*.{i}.attention.output.dense.weight", "*layer*.{i}.attention.o_proj.weight"),
    "fc1": ("*layer*.{i}.intermediate.dense.weight", "*layer*.{i}.mlp.fc1.weight"),
    "fc2": ("*layer.{i}.output.dense.weight", "*layer*.{i}.mlp.fc2.weight"),
}  # modules of transformers are renamed between its major versions


def bert(vocabulary: int, context: int, *, width: int, layers: int, heads: int, next_sentence: bool = False) -> Any:
    """Make a Post-LN BERT that predicts masked tokens, with ``next_sentence`` also whether sentences are neighbours."""
    transformers = library()
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForPreTraining(config) if next_sentence else transformers.BertForMaskedLM(config)


def vit_base() -> Any:
    """Make a ViT-B/16 of 1,000 classes."""
    transformers = library()
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))


def resnet_18() -> Any:
    """Make a ResNet-18 of 1,000 classes."""
    transformers = library()
    sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(layer_type="basic", num_labels=1000, **sizes)
    )


def by_role(model: nn.Module, layer: int, roles: Sequence[str] = tuple(ROLES)) -> dict[str, str]:
    """Find one weight for each role in a layer.

    Args:
        model: One of transformers.
        layer: Its number.
        roles: Keys of :data:`ROLES`.

    Raises:
        ConfigurationError: A role has none, or several: the installed transformers names its modules otherwise.
    """
    names = [name for name, _ in model.named_parameters()]
    return {role: _single(names, [pattern.format(i=layer) for pattern in ROLES[role]], role) for role in roles}


def bert_blocks(model: nn.Module) -> dict[str, list[str]]:
    """Name the blocks of a BERT: its embedding, six weights of every layer, the dense layers of its heads."""
    blocks = {"embedding": [_single(_names(model), ["*word_embeddings.weight"], "embedding")]}
    layers = len({name.split(".layer.")[1].split(".")[0] for name in _names(model) if ".layer." in name})
    for layer in range(layers):
        blocks |= {f"{layer}.{role}": [name] for role, name in by_role(model, layer).items()}
    blocks["transform"] = [_single(_names(model), ["*transform.dense.weight"], "transform")]
    return blocks


def vit_blocks(model: nn.Module, layers: Sequence[int] = (0, 6, 11)) -> dict[str, list[str]]:
    """Name the 14 blocks of the paper's ViT-B/16: query, key and value of a layer are one."""
    blocks = {"patch_embed": [_single(_names(model), ["*patch_embeddings.projection.weight"], "patch embedding")]}
    for layer in layers:
        found = by_role(model, layer)
        blocks[f"{layer}.qkv"] = [found["query"], found["key"], found["value"]]
        blocks |= {f"{layer}.{ours}": [found[role]] for ours, role in _PAPER_NAMES.items()}
    blocks["head"] = ["classifier.weight"]
    return blocks


def library() -> Any:
    """Import transformers.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import transformers  # noqa: PLC0415 - takes seconds, and only some models need it
    except ImportError as error:
        raise ConfigurationError(
            "This model comes from transformers, which is not installed; pip install 'hvp-engine[experiments]'."
        ) from error
    return transformers


_PAPER_NAMES = {"proj": "output", "fc1": "fc1", "fc2": "fc2"}


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _single(names: Sequence[str], patterns: Sequence[str], role: str) -> str:
    found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if len(found) != 1:
        raise ConfigurationError(
            f"The model has {len(found)} weights that could be its {role} ({', '.join(found[:3]) or 'none'}): the "
            "installed transformers names its modules in a way that is not known here; install version 4.50 to 5."
        )
    return found[0]
