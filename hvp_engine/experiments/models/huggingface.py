"""Architectures of transformers, randomly initialised, without dropout."""

from __future__ import annotations

from typing import Any

from hvp_engine.errors import ConfigurationError


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
