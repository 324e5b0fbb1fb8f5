"""What is fine-tuned on two cores: pre-trained networks with a new head, their data, rates and recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import weights
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.continued import Studied
from hvp_engine.experiments.data import classification
from hvp_engine.experiments.data.classification import TextSamples, TextSet
from hvp_engine.experiments.data.corpus import standard_library
from hvp_engine.experiments.data.images import gaussian, photographs
from hvp_engine.experiments.data.samples import Images, Samples, shuffled
from hvp_engine.experiments.entry import Entry, Recipe, seeded
from hvp_engine.experiments.fine_tuning_recipe import fine_tuning
from hvp_engine.experiments.models.vision import ResNet
from hvp_engine.experiments.models.with_head import WithHead, new_head
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.remembered import remembered

_ADAPTIVE, _PLAIN, _MOMENTUM = (3e-4, 1e-4, 3e-5), (1.0, 0.3, 0.1), (0.1, 0.03, 0.01)
_RATES: Mapping[str, Sequence[float]] = {
    "adam": _ADAPTIVE, "rmsprop": _ADAPTIVE, "plain-sgd": _PLAIN, "sgd": _MOMENTUM,
    "signsgd": _ADAPTIVE, "signum": _ADAPTIVE,
}  # fmt: skip
_TINY_RATES: Mapping[str, Sequence[float]] = {"adam": (1e-2, 3e-3), "plain-sgd": (0.3, 0.1)}
_TOKENS, _SIDE = 24, 32
_TRAIN, _TEST = 2000, 400
_SHUFFLED, _ORDERED = 0, 1


def text_entry(setting: Setting) -> Entry:
    """Make the Transformer: MiniLM on tweets, or with ``--set text=bbcnews`` on news; at size tiny without weights."""
    if setting.size == "tiny":
        recipe = fine_tuning(setting, 12)
        return Entry(
            "bert-bytes", "transformer", _tiny_bert, losses.classification, partial(_bytes, recipe), recipe, _TINY_RATES
        )
    name = setting.option("text", "tweets")
    recipe = fine_tuning(setting, 60)
    return Studied(
        f"minilm-{name}",
        "transformer",
        partial(_minilm, setting),
        losses.classification,
        lambda seed: _text_batches(_texts(setting), setting, recipe, seed),
        recipe,
        _RATES,
    )


def image_entry(setting: Setting) -> Entry:
    """Make the CNN: EfficientNet-lite0 on photographs; at size tiny a small ResNet on Gaussian inputs."""
    if setting.size == "tiny":
        recipe = fine_tuning(setting, 12)
        build = seeded(lambda: ResNet((4, 8), 3, channels=1))
        return Entry(
            "resnet-gaussian", "cnn", build, losses.classification, partial(_gaussian, recipe), recipe, _TINY_RATES
        )
    recipe = fine_tuning(setting, 60)
    return Studied(
        "efficientnet-lite0-photographs",
        "cnn",
        partial(_efficientnet, setting),
        losses.classification,
        lambda seed: _image_batches(_photographs(), recipe, seed),
        recipe,
        _RATES,
    )


def _texts(setting: Setting) -> TextSet:
    match setting.option("text", "tweets"):
        case "tweets":
            return classification.tweets(train=_TRAIN, test=_TEST, data=setting.data)
        case "bbcnews":
            return classification.bbcnews(train=_TRAIN - _TEST, test=_TEST, data=setting.data)
        case other:
            raise ConfigurationError(f"There are no texts {other!r}; choose tweets or bbcnews.")


@remembered(1)
def _photographs() -> Images:
    return photographs(_SIDE, train=1700, test=340)


def _minilm(setting: Setting, seed: int) -> nn.Module:
    body: Any = weights.load("minilm", setting)
    return WithHead(body, body.config.hidden_size, len(_texts(setting).classes), seed)


def _efficientnet(setting: Setting, seed: int) -> nn.Module:
    model: Any = weights.load("efficientnet-lite0", setting)
    model._fc = new_head(model._fc.in_features, len(_photographs().classes), seed)
    network: nn.Module = model
    return network


def _text_batches(texts: TextSet, setting: Setting, recipe: Recipe, seed: int) -> Batches:
    tokenizer = weights.tokenizer("minilm", setting)

    def encoded(samples: TextSamples) -> dict[str, Tensor]:
        tokens = tokenizer(
            list(samples.texts), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
        )
        return {**tokens, "labels": samples.labels}

    train, test = encoded(texts.train), encoded(texts.test)

    def training() -> Iterator[dict[str, Tensor]]:
        for chosen in shuffled(len(train["labels"]), recipe.batch, seed):
            yield {name: tensor[chosen] for name, tensor in train.items()}

    return Batches([next(training())], training, _cut(test, 100), texts.source.described())


def _cut(batch: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    names = list(batch)
    return [
        dict(zip(names, part, strict=True))
        for part in zip(*(torch.split(batch[name], size) for name in names), strict=True)
    ]


def _image_batches(images: Images, recipe: Recipe, seed: int) -> Batches:
    train = images.train
    held_out = [tuple(part) for part in zip(*(torch.split(tensor, 100) for tensor in images.test), strict=True)]
    first = tuple(next(train.batches(recipe.batch, seed)))
    return Batches([first], lambda: map(tuple, train.batches(recipe.batch, seed)), held_out, images.source.described())


def _tiny_bert(seed: int) -> nn.Module:
    from transformers import BertConfig, BertModel  # noqa: PLC0415 - seconds to import

    def build() -> nn.Module:
        config = BertConfig(
            vocab_size=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=_TOKENS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return WithHead(BertModel(config, add_pooling_layer=False), 32, 2, seed)

    return seeded(build)(seed)


def _bytes(recipe: Recipe, seed: int) -> Batches:
    """Make batches of Python's sources, half of them with their bytes shuffled: which are?"""
    corpus = standard_library()
    generator = torch.Generator().manual_seed(seed)

    def batch(tokens: Tensor) -> dict[str, Tensor]:
        labels = torch.randint(_SHUFFLED, _ORDERED + 1, (len(tokens),), generator=generator)
        order = torch.stack([torch.randperm(tokens.shape[1], generator=generator) for _ in tokens])
        mixed = torch.where(labels[:, None] == _ORDERED, tokens, tokens.gather(1, order))
        return {"input_ids": mixed, "labels": labels}

    held_out = [batch(corpus.sequences(64, _TOKENS))]
    rows = [batch(tokens) for tokens in islice(corpus.batches(recipe.batch, _TOKENS, seed), recipe.steps)]
    return Batches(rows[:1], lambda: iter(rows), held_out, corpus.source.described())


def _gaussian(recipe: Recipe, seed: int) -> Batches:
    inputs, labels = gaussian(3, 64, 512, seed)
    samples = Samples(inputs.view(-1, 1, 8, 8), labels)
    parts = Samples(*(tensor[:384] for tensor in samples)), Samples(*(tensor[384:] for tensor in samples))
    return Batches(
        [tuple(parts[0].draw(recipe.batch, seed))],
        lambda: map(tuple, parts[0].batches(recipe.batch, seed)),
        [tuple(parts[1])],
    )
