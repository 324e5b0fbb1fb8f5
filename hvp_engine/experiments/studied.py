"""The networks whose single tensors are looked at: pre-trained ones with a new head, and random ones of the zoo.

Each is an entry as those of the zoo are; its blocks are the tensors that the paper lists (:mod:`.roles`). Pre-trained
ones come from packages (the extra ``experiments-weights``); at the paper's size from the user's folders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import studied_paper, weights
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.continued import Studied
from hvp_engine.experiments.data import classification, images, text
from hvp_engine.experiments.data.classification import TextSamples
from hvp_engine.experiments.data.samples import Samples
from hvp_engine.experiments.data.source import Source
from hvp_engine.experiments.entry import Entry, Recipe, seeded
from hvp_engine.experiments.models.huggingface import library
from hvp_engine.experiments.models.with_head import WithHead, new_head
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import listed_tensors
from hvp_engine.experiments.zoo import zoo

PRETRAINED = ("minilm", "dinov2-s", "efficientnet-lite0")
RANDOM = ("roberta", "vit", "resnet")
_NEVER = Recipe(steps=0, batch=0)  # they are looked at as they are
_TOKENS = 64
_SAMPLES = 8  # where the Hessian is taken
BATCHES, _BATCH = 4, 16  # where gradients alone are, which cost less
_SIDE = 56
_BYTES = 4 + 256  # RoBERTa's special tokens, then bytes


def studied(setting: Setting) -> dict[str, Entry]:
    """Make the entries of a size; models and data are made when an entry is asked for them."""
    random = {name: replace(entry, choose=listed_tensors) for name, entry in zoo(setting).items() if name in RANDOM}
    make = partial(Studied, recipe=_NEVER, choose=listed_tensors, loss=losses.classification)
    text_entry: Callable[..., Entry] = partial(make, family="transformer", data=partial(_news, setting))
    return {
        "minilm": text_entry(name="minilm", build=partial(_minilm, setting)),
        "dinov2-s": make(
            name="dinov2-s", family="transformer", build=partial(_dinov2, setting), data=_photographs
        ),
        "efficientnet-lite0": make(
            name="efficientnet-lite0", family="cnn", build=partial(_efficientnet, setting), data=_photographs
        ),
        "smollm2-135m": make(
            name="smollm2-135m",
            family="transformer",
            build=lambda seed: weights.load("smollm2-135m", setting),
            loss=losses.causal_lm,
            data=partial(_language, setting),
        ),
        "roberta": Entry(
            "roberta", "transformer", partial(_roberta, setting), losses.classification,
            partial(_byte_news, setting), _NEVER, choose=listed_tensors,
        ),
        **random,
    }  # fmt: skip


def chosen(setting: Setting) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """Return the entries that ``--set models=...`` names, else pre-trained ones if installed, else random ones.

    Returns:
        The entries, and notes for the reader.

    Raises:
        ConfigurationError: There is no such entry; at the paper's size, no data is given.
    """
    if setting.size == "paper":
        return studied_paper.entries(setting), ()
    known = studied(setting)
    asked = setting.option("models", "")
    if asked:
        names: Sequence[str] = asked.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigurationError(f"There is no model {unknown[0]!r}; choose among {', '.join(known)}.")
        return {name: known[name] for name in names}, ()
    missing = [] if setting.size == "tiny" else [name for name in PRETRAINED if not _is_there(name, setting)]
    if setting.size == "tiny" or missing:
        note = f"Networks are random: the weights of {', '.join(missing)} are not installed." if missing else ""
        return {name: known[name] for name in RANDOM}, (note,) if note else ()
    return {name: known[name] for name in PRETRAINED}, ()


def gradient_batches(setting: Setting, entry: Entry, seed: int) -> list[Any]:
    """Take several batches: a gradient costs little, and that of a few samples is much of it noise.

    At the paper's size it is the one batch that the paper takes.
    """
    data = entry.data(seed)
    return list(data.fixed) if setting.size == "paper" else list(islice(data.training(), BATCHES))


def sources(setting: Setting, names: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """Say where the pre-trained weights among some entries come from, under which licence."""
    loaded = (*PRETRAINED, "smollm2-135m")
    return {name: weights.source(name, setting).described() for name in names if name in loaded}


def _is_there(name: str, setting: Setting) -> bool:
    try:
        weights.source(name, setting)
    except ConfigurationError:
        return False
    return True


def _minilm(setting: Setting, seed: int) -> nn.Module:
    body: Any = weights.load("minilm", setting)
    return WithHead(body, body.config.hidden_size, len(classification.NEWS), seed)


def _dinov2(setting: Setting, seed: int) -> nn.Module:
    body: Any = weights.load("dinov2-s", setting)
    return WithHead(body, body.config.hidden_size, len(images.PHOTOGRAPHS), seed)


def _efficientnet(setting: Setting, seed: int) -> nn.Module:
    loaded: Any = weights.load("efficientnet-lite0", setting)
    loaded._fc = new_head(loaded._fc.in_features, len(images.PHOTOGRAPHS), seed)
    model: nn.Module = loaded
    return model


def _roberta(setting: Setting, seed: int) -> nn.Module:
    """Make RoBERTa at its initialisation, on bytes."""
    transformers = library()
    width, layers = (32, 2) if setting.size == "tiny" else (192, 6)
    config = transformers.RobertaConfig(
        vocab_size=_BYTES, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 16,
        intermediate_size=4 * width, max_position_embeddings=_TOKENS + 2, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    body = seeded(lambda: transformers.RobertaModel(config, add_pooling_layer=False))(seed)
    return WithHead(body, width, len(classification.NEWS), seed)


def _news(setting: Setting, seed: int) -> Batches:
    """Draw news articles as tokens, padded to the same length."""
    tokenizer = weights.tokenizer("minilm", setting)

    def batch(samples: TextSamples) -> dict[str, Tensor]:
        encoded = tokenizer(
            list(samples.texts), truncation=True, max_length=_TOKENS, padding="max_length", return_tensors="pt"
        )
        return {**encoded, "labels": samples.labels}

    return _of_texts(setting, seed, batch)


def _byte_news(setting: Setting, seed: int) -> Batches:
    """Draw news articles as bytes, padded to the same length; at size tiny Python's sources, with classes in turn."""
    if setting.size == "tiny":
        corpus = text.byte_text("stdlib", setting.data)
        tokens = corpus.batch(_SAMPLES, _TOKENS, torch.Generator().manual_seed(seed)) + _BYTES - 256
        labels = torch.arange(_SAMPLES) % len(classification.NEWS)
        batch_of_bytes = {"input_ids": tokens, "labels": labels}
        return _fixed(batch_of_bytes, batch_of_bytes, corpus.source)

    def batch(samples: TextSamples) -> dict[str, Tensor]:
        cut = [article.encode("latin-1", "replace")[:_TOKENS].ljust(_TOKENS) for article in samples.texts]
        tokens = torch.tensor([list(line) for line in cut]) + _BYTES - 256
        return {"input_ids": tokens, "labels": samples.labels}

    return _of_texts(setting, seed, batch)


def _of_texts(setting: Setting, seed: int, batch: Callable[[TextSamples], dict[str, Tensor]]) -> Batches:
    texts = classification.bbcnews(seed=seed, train=BATCHES * _BATCH, test=_SAMPLES, data=setting.data)
    return _divided(batch(texts.train), batch(texts.test), texts.source)


def _language(setting: Setting, seed: int) -> Batches:
    """Take two articles as token ids (2, tokens)."""
    tokenizer = weights.tokenizer("smollm2-135m", setting)
    texts = classification.bbcnews(seed=seed, train=2, test=2, data=setting.data)
    train, test = (
        torch.tensor([tokenizer(article)["input_ids"][:_TOKENS] for article in samples.texts])
        for samples in (texts.train, texts.test)
    )
    return _fixed(train, test, texts.source)


def _photographs(seed: int) -> Batches:
    pictures = images.photographs(
        size=_SIDE, seed=seed, train=10 * len(images.PHOTOGRAPHS), test=len(images.PHOTOGRAPHS)
    )
    samples = pictures.train.draw(BATCHES * _BATCH, seed)
    return _divided(samples, pictures.test.draw(_SAMPLES, seed), pictures.source)


def _divided(samples: Any, test: Any, source: Source) -> Batches:
    """Take the first samples for the Hessian, and all of them for gradients alone, in batches."""
    several = [_rows(samples, slice(start, start + _BATCH)) for start in range(0, BATCHES * _BATCH, _BATCH)]
    return Batches([_rows(samples, slice(_SAMPLES))], lambda: iter(several), [test], source.described())


def _rows(samples: Any, rows: slice) -> Any:
    if isinstance(samples, Mapping):
        return {name: tensor[rows] for name, tensor in samples.items()}
    return Samples(*(tensor[rows] for tensor in samples))


def _fixed(train: Any, test: Any, source: Source) -> Batches:
    return Batches([train], lambda: iter([train]), [test], source.described())
