"""Networks that differ in where their LayerNorm stands, and the gradients of their layers (`layernorm_place.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hvp_engine.experiments.entry import Blocks, Entry, Recipe, seeded
from hvp_engine.experiments.heterogeneity import gini, gradient_norms, spread
from hvp_engine.experiments.models.huggingface import library
from hvp_engine.experiments.models.patches import PatchConfig, ViT
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import layer_of, role_of
from hvp_engine.experiments.small_zoo import small_zoo
from hvp_engine.experiments.tensors import network

Place = Literal["post", "pre"]
PLACES: tuple[Place, ...] = ("post", "pre")
LAYERS = 12
ROLES = ("query", "key", "value", "output", "fc1", "fc2")
_CONTEXT = 64


@dataclass(frozen=True)
class Norms:
    """Gradient norms of the weight matrices of all layers, by name."""

    by_name: Mapping[str, float]

    @classmethod
    def measured(cls, setting: Setting, entry: Entry, seed: int) -> Norms:
        """Measure them on a network at its initialisation."""
        model = network(setting, entry, seed)
        found = gradient_norms(model, entry.loss, entry.data(seed).fixed)
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
        kept = [name for name in found if name in matrices and layer_of(name) is not None and role_of(name) in ROLES]
        return cls({name: found[name] for name in kept})

    @property
    def spread(self) -> float:
        """Standard deviation of their decimal logarithms."""
        return spread(list(self.by_name.values()))

    @property
    def gini(self) -> float:
        """Gini coefficient."""
        return gini(list(self.by_name.values()))

    @property
    def over_layers(self) -> float:
        """By how much the largest over layers exceeds the smallest: the geometric mean over roles."""
        ratios = [max(of_role) / min(of_role) for of_role in map(self.of, ROLES)]
        return float(np.exp(np.mean(np.log(ratios))))

    def of(self, role: str) -> list[float]:
        """Return those of a role by layer."""
        return [norm for name, norm in self.by_name.items() if role_of(name) == role]


def entries(setting: Setting) -> dict[str, dict[Place, Entry]]:
    """Make the networks of both tasks, Post-LN and Pre-LN; at size tiny of masked text only."""
    zoo = small_zoo(setting if setting.size == "tiny" else replace(setting, size="small"))
    bert, wide, heads = zoo["bert"], width(setting), 12 if setting.size == "paper" else 4
    vocabulary = bert.meta().get_input_embeddings().num_embeddings  # type: ignore[operator]
    tasks: dict[str, tuple[Entry, dict[Place, partial[Any]]]]
    tasks = {"masked text": (bert, {place: partial(_text_network, vocabulary, wide, heads, place) for place in PLACES})}
    if setting.size != "tiny":
        config = PatchConfig(32, 4, 3, 17, width=wide, layers=LAYERS, heads=heads)
        tasks["photographs"] = (zoo["vit-photographs"], {place: partial(ViT, config, place) for place in PLACES})
    return {
        task: {
            place: Entry(
                f"layernorm-{base.name}-{place}", "transformer", seeded(partial(_xavier, make)), base.loss, base.data,
                Recipe(steps=0, batch=0), choose=six_tensors, sketch=partial(_sketch, task),
            )
            for place, make in makers.items()
        }
        for task, (base, makers) in tasks.items()
    }  # fmt: skip


def six_tensors(model: nn.Module) -> Blocks:
    """Name values and first MLP layers of the first, the middle and the last layer."""
    names = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    chosen = (0, LAYERS // 2, LAYERS - 1)
    return {n: [n] for n in names if role_of(n) in ("value", "fc1") and layer_of(n) in chosen}


def width(setting: Setting) -> int:
    """Return the width of the networks."""
    return 768 if setting.size == "paper" else 64


def _sketch(task: str) -> tuple[Any, int]:
    """Make the shapes of the batch whose gradients are taken, for plans; there is one."""
    with torch.device("meta"):
        if task == "photographs":
            return (torch.empty(128, 3, 32, 32), torch.empty(128, dtype=torch.int64)), 1
        tokens = torch.empty(16, _CONTEXT, dtype=torch.int64)
        return (tokens, tokens), 1


def _text_network(vocabulary: int, wide: int, heads: int, place: Place) -> nn.Module:
    transformers = library()
    padding = vocabulary  # an id of its own: RoBERTa gives padding no position
    name = "Roberta" if place == "post" else "RobertaPreLayerNorm"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=vocabulary + 1, hidden_size=wide, num_hidden_layers=LAYERS, num_attention_heads=heads,
        intermediate_size=4 * wide, max_position_embeddings=padding + _CONTEXT + 1, type_vocab_size=1,
        pad_token_id=padding, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: nn.Module = getattr(transformers, f"{name}ForMaskedLM")(config)
    return model


def _xavier(make: Callable[[], nn.Module]) -> nn.Module:
    model = make()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return model
