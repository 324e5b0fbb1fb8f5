"""The networks of arXiv 2502.00213 at their size: RoBERTa-base on seven tasks, ResNet-18 and ViT-B/16 on two image sets.

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
from hvp_engine.experiments import weights
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.data import picture_files
from hvp_engine.experiments.data.glue import glue
from hvp_engine.experiments.entry import Entry, Family, Recipe
from hvp_engine.experiments.models.with_head import WithHead
from hvp_engine.experiments.paper_plan import PlannedPart, planned_slq
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import listed_tensors

CLASSES = {"boolq": 2, "cb": 3, "rte": 2, "wic": 2, "cola": 2, "sst2": 2, "mrpc": 2, "flowers102": 102, "aircraft": 100}
_IMAGES = ("flowers102", "aircraft")
_BATCH, _TOKENS, _SIDE = 32, 128, 224
_SMALL_BATCH = {"cb": 8, "rte": 8}


class _Network(NamedTuple):
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
    made: dict[str, Entry] = {}
    for name, network in _NETWORKS.items():
        for task in network.tasks:
            if task in setting.data:
                made[f"{name}-{task}"] = _entry(setting, name, network, task)
    if not made:
        raise ConfigurationError(
            f"At the paper's size this experiment needs data of at least one task ({', '.join(CLASSES)}) and weights: "
            "--data rte=DIR --weights roberta-base=DIR; the networks are roberta-base, resnet-18 and vit-b16."
        )
    return made


def planned(setting: Setting, steps: int, probes: int) -> list[PlannedPart]:
    """Plan ``slq`` over the listed tensors of every network, on one batch per task and seed."""
    parts = []
    for name, network in _NETWORKS.items():
        with torch.device("meta"):
            model = WithHead(network.skeleton(), network.features, 2, 0).eval()
        blocks = listed_tensors(model, network.fused)
        what = f"{name}, {len(blocks)} tensors, {len(network.tasks)} data sets, {setting.seeds} batches each"
        runs = len(network.tasks) * setting.seeds
        parts.append(
            planned_slq(
                what, model, losses.classification, blocks, [_shape(network)],
                steps=steps, probes=probes, precision=setting.precision, runs=runs,
            )
        )  # fmt: skip
    return parts


def _entry(setting: Setting, name: str, network: _Network, task: str) -> Entry:
    def build(seed: int) -> nn.Module:
        return WithHead(weights.load(name, setting), network.features, CLASSES[task], seed)

    return Entry(
        f"{name}-{task}", network.family, build, losses.classification,
        partial(_pictures if task in _IMAGES else _texts, setting, task), Recipe(steps=0, batch=0),
        choose=partial(listed_tensors, fused=network.fused), classifies=True,
    )  # fmt: skip


def _texts(setting: Setting, task: str, seed: int) -> Batches:
    tokenizer = weights.tokenizer("roberta-base", setting)
    samples = glue(task, setting.data).train
    drawn = torch.randperm(len(samples.texts), generator=torch.Generator().manual_seed(seed))
    kept = drawn[: _SMALL_BATCH.get(task, _BATCH)]
    encoded = tokenizer(
        [samples.texts[i] for i in kept.tolist()],
        truncation=True, max_length=_TOKENS, padding="max_length", return_tensors="pt",
    )  # fmt: skip
    batch = {**encoded, "labels": samples.labels[kept]}
    return Batches([batch], lambda: iter([batch]), [batch], {})


def _pictures(setting: Setting, task: str, seed: int) -> Batches:
    batch = getattr(picture_files, task)(setting.data).train.draw(_BATCH, seed)
    return Batches([batch], lambda: iter([batch]), [batch], {})


def _shape(network: _Network) -> Any:
    with torch.device("meta"):
        labels = torch.zeros(_BATCH, dtype=torch.int64)
        if set(network.tasks) == set(_IMAGES):
            return torch.empty(_BATCH, 3, _SIDE, _SIDE), labels
        tokens: Tensor = torch.zeros(_BATCH, _TOKENS, dtype=torch.int64)
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
_NETWORKS = {
    "roberta-base": _Network("transformer", _roberta, 768, _TEXTS, False),
    "resnet-18": _Network("cnn", _resnet, 512, _IMAGES, False),
    "vit-b16": _Network("transformer", _vit, 768, _IMAGES, True),
}
