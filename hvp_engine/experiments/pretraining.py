"""A language model, random and pre-trained, on the same text: what pre-training does to its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import cache
from hvp_engine.experiments.continued import Continued, Pair
from hvp_engine.experiments.data import text
from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.entry import Recipe, seeded
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.experiments.pretrained_models import FINE_TUNED, SMOLLM2, gpt2, smollm2
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.remembered import remembered
from hvp_engine.experiments.tasks import Amounts, on_text

_PRETRAINED = {"adam": (3e-3,)}
_TINY_RATES = {"sgd": (0.1, 0.03), "adam": (3e-3, 1e-3)}


def pair(setting: Setting) -> Pair:
    """Make the pair of a size: at small size a GPT on bytes, or with ``--set model=smollm2-135m`` a real model.

    Raises:
        ConfigurationError: There is no such model, or its weights or texts are missing.
    """
    if setting.size == "paper":
        return gpt2(setting)
    model = setting.option("model", "gpt")
    if model == "gpt":
        return _on_bytes(setting)
    if model == SMOLLM2:
        return smollm2(setting)
    raise ConfigurationError(f"model={model} is neither gpt nor {SMOLLM2}; give one of them.")


def _on_bytes(setting: Setting) -> Pair:
    """Pre-train a GPT on the plays and take it to news, or to ``--set target=stdlib``; in tests both are that."""
    tiny = setting.size == "tiny"
    config = GPTConfig(256, 64, 2 if tiny else 4, 4, 32 if tiny else 64, damp_wo=False)
    amounts = Amounts(4, 4, 4, 4, 64) if tiny else Amounts(32, 16, 16, 64, 64)
    target = setting.option("target", "stdlib" if tiny else "bbcnews")

    def entry(name: str, corpus: str, steps: int, rates: Mapping[str, Sequence[float]]) -> Continued:
        return Continued(
            name, "transformer", seeded(partial(GPT, config)), losses.causal_lm,
            lambda seed: on_text(_byte_text(corpus, tuple(sorted(setting.data.items()))), amounts, seed),
            Recipe(steps, amounts.training, clip=1.0), rates, lambda model: paper_blocks(config),
        )  # fmt: skip

    first = entry("gpt-bytes", "stdlib" if tiny else "shakespeare", 8 if tiny else 800, _PRETRAINED)
    steps = setting.option("steps", 6 if tiny else 150)
    random = entry(f"gpt-{target}-random", target, steps, _TINY_RATES if tiny else FINE_TUNED)
    pretrained = Continued(
        f"gpt-{target}-pretrained", "transformer", lambda seed: cache.checkpoint(setting, first, "1.0", seed),
        random.loss, random.data, random.recipe, random.rates, random.choose, shapes=partial(GPT, config),
    )  # fmt: skip
    origin = {"optimizer": "adam", "rates": list(_PRETRAINED["adam"]), "steps": first.recipe.steps}
    return Pair(random, pretrained, {**origin, "data": first.data(0).source})


@remembered(2)
def _byte_text(name: str, paths: tuple[tuple[str, Path], ...]) -> Corpus:
    return text.byte_text(name, dict(paths))
