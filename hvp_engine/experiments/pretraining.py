"""One language model at two starts, random and pre-trained, on the same text: what pre-training does to its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvp_engine import blocks as cuts
from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import cache, weights
from hvp_engine.experiments.data import alpaca, classification, text
from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.entry import Blocks, Entry, Recipe, seeded
from hvp_engine.experiments.models import huggingface
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.tasks import Amounts, on_text

FINE_TUNED = {"sgd": (1.0, 0.3, 0.1, 0.03), "adam": (1e-2, 3e-3, 1e-3, 3e-4)}
_SMOLLM2 = "smollm2-135m"
_GPT2 = "gpt2"
_GPT2_CONTEXT, _GPT2_MICROBATCH, _GPT2_SEQUENCES, _GPT2_STEPS, _GPT2_BATCH = 1024, 8, 240, 1000, 32
_GPT2_LAYERS = (0, 3, 7, 11)
_SMOLLM2_ROLES = {
    0: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    29: ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
}


@dataclass(frozen=True)
class Continued(Entry):
    """An entry that starts from weights which were trained elsewhere: its shapes are those of a model without them.

    Attributes:
        shapes: Makes that model.
    """

    shapes: Callable[[], nn.Module] | None = None

    def meta(self) -> nn.Module:
        """Make the model without its weights on the meta device, in eval mode."""
        if self.shapes is None:
            return super().meta()
        with torch.device("meta"):
            return self.shapes().eval()


@dataclass(frozen=True)
class Pair:
    """The same network at two starts, with the same data, blocks and recipe.

    Attributes:
        random: At its random initialisation.
        pretrained: With the weights of another training.
        origin: How they were trained, for the manifest.
        steps: Lanczos steps; None takes those of the size.
        probes: Random vectors per block, likewise.
    """

    random: Entry
    pretrained: Continued
    origin: Mapping[str, object]
    steps: int | None = None
    probes: int | None = None


def pair(setting: Setting) -> Pair:
    """Make the pair of a size: at small size a GPT on bytes, or with ``--set model=smollm2-135m`` a real model.

    Raises:
        ConfigurationError: There is no such model, or its weights or texts are missing.
    """
    if setting.size == "paper":
        return _gpt2(setting)
    match setting.option("model", "gpt"):
        case "gpt":
            return _bytes(setting)
        case "smollm2-135m":
            return _smollm2(setting)
        case other:
            raise ConfigurationError(f"model={other} is neither gpt nor {_SMOLLM2}; give one of them.")


def _bytes(setting: Setting) -> Pair:
    """Pre-train the zoo's GPT on plays, for tests on Python's sources; the target is news unless ``--set target=``."""
    tiny = setting.size == "tiny"
    config = GPTConfig(256, 64, 2 if tiny else 4, 4, 32 if tiny else 64, damp_wo=False)
    amounts = Amounts(4 if tiny else 32, 16, 4 if tiny else 16, 4 if tiny else 64, 64)
    origin = "stdlib" if tiny else "shakespeare"
    target = setting.option("target", "stdlib" if tiny else "bbcnews")

    def entry(name: str, corpus: str, recipe: Recipe, rates: Mapping[str, Sequence[float]]) -> Entry:
        return Entry(
            name, "transformer", seeded(partial(GPT, config)), losses.causal_lm,
            lambda seed: on_text(_byte_text(corpus, tuple(sorted(setting.data.items()))), amounts, seed),
            recipe, rates, lambda model: paper_blocks(model.config),
        )  # fmt: skip

    first = entry("gpt-bytes", origin, Recipe(8 if tiny else 800, amounts.training, clip=1.0), {"adam": (3e-3,)})
    rates = {"sgd": (0.1, 0.03), "adam": (3e-3, 1e-3)} if tiny else FINE_TUNED
    random = entry(f"gpt-{target}-random", target, Recipe(6 if tiny else 150, amounts.training, clip=1.0), rates)
    pretrained = continued(
        random, f"gpt-{target}-pretrained", lambda seed: cache.checkpoint(setting, first, "1.0", seed), random.build
    )
    trained = {"optimizer": "adam", "rate": 3e-3, "steps": first.recipe.steps, "data": first.data(0).source}
    return Pair(random, pretrained, trained)


def _smollm2(setting: Setting) -> Pair:
    model = partial(weights.load, _SMOLLM2, setting)
    amounts = Amounts(2, 2, 4, 8, 64)
    return _given(setting, _SMOLLM2, model, "bbcnews", amounts, Recipe(20, 4, clip=1.0), _smollm2_blocks, 12, 1)


def _gpt2(setting: Setting) -> Pair:
    amounts = Amounts(_GPT2_SEQUENCES, _GPT2_MICROBATCH, _GPT2_BATCH, 64, _GPT2_CONTEXT)
    recipe = Recipe(setting.option("steps", _GPT2_STEPS), _GPT2_BATCH, clip=1.0)
    return _given(setting, _GPT2, partial(weights.load, _GPT2, setting), "alpaca", amounts, recipe, gpt2_blocks)


def continued(random: Entry, name: str, build: Callable[[int], nn.Module], shapes: Callable[[int], nn.Module]) -> Continued:
    """Make the entry of the same network that starts from the weights that ``build`` gives."""
    kept = {key: getattr(random, key) for key in ("family", "loss", "data", "recipe", "rates", "choose", "sketch")}
    return Continued(name=name, build=build, shapes=partial(shapes, 0), **kept)
