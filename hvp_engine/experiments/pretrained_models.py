"""Released language models beside their random initialisations: SmolLM2-135M from a package, GPT-2 from a folder."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hvp_engine import losses
from hvp_engine.blocks import paper
from hvp_engine.experiments import weights
from hvp_engine.experiments.continued import Continued, Pair
from hvp_engine.experiments.data import alpaca, classification, text
from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.entry import Recipe, seeded
from hvp_engine.experiments.models.huggingface import library
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.remembered import remembered
from hvp_engine.experiments.tasks import Amounts, on_text

FINE_TUNED = {"sgd": (1.0, 0.3, 0.1, 0.03), "adam": (1e-2, 3e-3, 1e-3, 3e-4)}
SMOLLM2, GPT2 = "smollm2-135m", "gpt2"
_NEWS = 2000  # articles
_SMOLLM2_BLOCKS = {
    0: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    29: ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
}
_GPT2_STEPS = 1000


def smollm2(setting: Setting) -> Pair:
    """Take SmolLM2-135M, whose weights are read now, on news: 12 blocks, 12 steps and one probe, for two cores."""
    model = weights.load(SMOLLM2, setting)
    shapes = partial(type(model), model.config)
    amounts = Amounts(fixed=2, microbatch=2, training=4, held_out=8, length=64)
    corpus = remembered(1)(partial(_news, setting))
    random = Continued(
        f"{SMOLLM2}-random", "transformer", seeded(shapes), losses.causal_lm,
        lambda seed: on_text(corpus(), amounts, seed), Recipe(20, amounts.training, clip=1.0), FINE_TUNED,
        smollm2_blocks, shapes=shapes,
    )  # fmt: skip
    pretrained = replace(random, name=f"{SMOLLM2}-pretrained", build=lambda seed: copy.deepcopy(model))
    return Pair(random, pretrained, weights.source(SMOLLM2, setting).described(), steps=12, probes=1)


def gpt2(setting: Setting) -> Pair:
    """Take GPT-2 as released on Alpaca's instructions; weights and text are read late, so that a plan needs neither."""
    amounts = Amounts(fixed=240, microbatch=8, training=32, held_out=64, length=1024)
    corpus = remembered(1)(partial(_instructions, setting))
    random = Continued(
        "gpt2-alpaca-random", "transformer", seeded(_gpt2_shapes), losses.causal_lm,
        lambda seed: on_text(corpus(), amounts, seed),
        Recipe(setting.option("steps", _GPT2_STEPS), amounts.training, clip=1.0), FINE_TUNED,
        sketch=partial(_sketch, amounts), shapes=_gpt2_shapes,
    )  # fmt: skip
    pretrained = replace(random, name="gpt2-alpaca-pretrained", build=lambda seed: weights.load(GPT2, setting))
    origin = {"weights": GPT2, "path": str(setting.weights.get(GPT2))}
    return Pair(random, pretrained, origin, blocks=paper(random.meta()))


def smollm2_blocks(model: nn.Module) -> dict[str, list[str]]:
    """Take the embedding and eleven projections of the first and the last layer."""
    found = {"embedding": ["model.embed_tokens.weight"]}
    for layer, paths in _SMOLLM2_BLOCKS.items():
        found |= {f"{layer}.{path.partition('.')[2]}": [f"model.layers.{layer}.{path}.weight"] for path in paths}
    return found


def _gpt2_shapes() -> nn.Module:
    transformers = library()
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def _sketch(amounts: Amounts) -> tuple[Any, int]:
    batch = torch.empty(amounts.microbatch, amounts.length, dtype=torch.int64, device="meta")
    return batch, amounts.fixed // amounts.microbatch


def _news(setting: Setting) -> Corpus:
    found = classification.bbcnews(seed=0, train=_NEWS, test=1, data=setting.data)
    return text.tokenized(found.train.texts, weights.tokenizer(SMOLLM2, setting), found.source)


def _instructions(setting: Setting) -> Corpus:
    found = alpaca.instructions(setting.data)
    return text.tokenized(found.texts, weights.tokenizer(GPT2, setting), found.source)
