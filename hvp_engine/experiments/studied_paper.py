"""The networks of arXiv 2502.00213 at their size: RoBERTa-base on seven tasks, ResNet-18 and ViT-B/16 on two of images.

Weights and data are the user's: ``--weights roberta-base=DIR --data rte=DIR``; every task whose data is given is looked
at. Plans need neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import paper_fine_tuning, weights
from hvp_engine.experiments.batches import Batches, Lazy
from hvp_engine.experiments.continued import Continued
from hvp_engine.experiments.data import picture_files
from hvp_engine.experiments.data.classification import TextSamples
from hvp_engine.experiments.data.glue import glue
from hvp_engine.experiments.data.picture_files import PictureSet
from hvp_engine.experiments.data.samples import drawn, shuffled
from hvp_engine.experiments.entry import Entry, Family
from hvp_engine.experiments.models.with_head import WithHead
from hvp_engine.experiments.paper_plan import PlannedPart, planned_slq
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import listed_tensors

CLASSES = {"boolq": 2, "cb": 3, "rte": 2, "wic": 2, "cola": 2, "sst2": 2, "mrpc": 2, "flowers102": 102, "aircraft": 100}
_IMAGES = ("flowers102", "aircraft")
_BATCH, _TESTED, _TOKENS, _SIDE = 32, 64, 128, 224


class Network(NamedTuple):
    """A network, and the tasks that it is studied on."""

    family: Family
    skeleton: Callable[[], nn.Module]
    features: int
    tasks: tuple[str, ...]
    fused: bool


def entries(setting: Setting) -> dict[str, Entry]:
    """Make an entry of every network and task whose data is given.

    Raises:
        ConfigurationError: No data is given.
    """
    made = {name: entry for (name, task), entry in every(setting).items() if task in setting.data}
    if not made:
        raise ConfigurationError(
            f"At the paper's size this experiment needs data of at least one task ({', '.join(CLASSES)}) and weights: "
            "--data rte=DIR --weights roberta-base=DIR; the networks are roberta-base, resnet-18 and vit-b16."
        )
    return made


def every(setting: Setting) -> dict[tuple[str, str], Entry]:
    """Make an entry of every network and task, by its name and the task's; it reads weights and data late."""
    return {
        (f"{name}-{task}", task): _entry(setting, name, network, task)
        for name, network in NETWORKS.items()
        for task in network.tasks
    }


def planned(setting: Setting, steps: int, probes: int) -> list[PlannedPart]:
    """Plan ``slq`` over the listed tensors of every network, on one batch per task and seed."""
    parts = []
    for name, network in NETWORKS.items():
        with torch.device("meta"):
            model = WithHead(network.skeleton(), network.features, 2, 0).eval()
        blocks = listed_tensors(model, network.fused)
        what = f"{name}, {len(blocks)} tensors, {len(network.tasks)} data sets, {setting.seeds} batches each"
        runs = len(network.tasks) * setting.seeds
        parts.append(
            planned_slq(
                what, model, losses.classification, blocks, [_shape(network, _BATCH)],
                steps=steps, probes=probes, precision=setting.precision, runs=runs,
            )
        )  # fmt: skip
    return parts


def _entry(setting: Setting, name: str, network: Network, task: str) -> Entry:
    def with_head(body: nn.Module, seed: int) -> nn.Module:
        return WithHead(body, network.features, CLASSES[task], seed)

    return Continued(
        f"{name}-{task}", network.family, lambda seed: with_head(weights.load(name, setting), seed),
        losses.classification, partial(_pictures if task in _IMAGES else _texts, setting, task),
        paper_fine_tuning.recipe(setting, task), paper_fine_tuning.rates(name, task),
        partial(listed_tensors, fused=network.fused), lambda: (_shape(network, paper_fine_tuning.batch(task)), 1),
        shapes=lambda: with_head(network.skeleton(), 0),
    )  # fmt: skip


def _texts(setting: Setting, task: str, seed: int) -> Batches:
    tokenizer = weights.tokenizer("roberta-base", setting)
    found = glue(task, setting.data)
    size = paper_fine_tuning.recipe(setting, task).batch

    def encoded(samples: TextSamples, chosen: Tensor) -> dict[str, Tensor]:
        texts, seconds = (
            [part[i] for i in chosen.tolist()] if part else None for part in (samples.texts, samples.seconds)
        )
        tokens = tokenizer(
            texts, seconds, truncation=True, max_length=_TOKENS, padding="max_length", return_tensors="pt"
        )
        return {**tokens, "labels": samples.labels[chosen]}

    count = len(found.train.texts)
    held_out = Lazy(torch.split(torch.arange(len(found.test.texts)), _TESTED), partial(encoded, found.test))
    return Batches(
        [encoded(found.train, drawn(count, size, seed))],
        lambda: (encoded(found.train, chosen) for chosen in shuffled(count, size, seed)),
        held_out,
        found.source.described(),
    )


def _pictures(setting: Setting, task: str, seed: int) -> Batches:
    found: PictureSet = getattr(picture_files, task)(setting.data)
    size = paper_fine_tuning.recipe(setting, task).batch
    held_out = Lazy(torch.split(torch.arange(len(found.test.files)), _TESTED), found.test.take)
    return Batches(
        [found.train.draw(size, seed)], partial(found.train.batches, size, seed), held_out, found.source.described()
    )


def _shape(network: Network, batch: int) -> Any:
    with torch.device("meta"):
        labels = torch.zeros(batch, dtype=torch.int64)
        if set(network.tasks) == set(_IMAGES):
            return torch.empty(batch, 3, _SIDE, _SIDE), labels
        tokens: Tensor = torch.zeros(batch, _TOKENS, dtype=torch.int64)
        return {"input_ids": tokens, "labels": labels}


def _roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaModel  # noqa: PLC0415 - seconds to import

    config = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
    return RobertaModel(config, add_pooling_layer=False)


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel  # noqa: PLC0415

    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    return ResNetModel(config)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel  # noqa: PLC0415

    return ViTModel(ViTConfig(), add_pooling_layer=False)


_TEXTS = tuple(task for task in CLASSES if task not in _IMAGES)
NETWORKS = {
    "roberta-base": Network("transformer", _roberta, 768, _TEXTS, False),
    "resnet-18": Network("cnn", _resnet, 512, _IMAGES, False),
    "vit-b16": Network("transformer", _vit, 768, _IMAGES, True),
}
