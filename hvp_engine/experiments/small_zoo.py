"""The zoo at the sizes of two cores: small, and tiny for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data import images, text
from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.data.samples import Images
from hvp_engine.experiments.entry import GRID, Entry, Family, Recipe, seeded
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.experiments.models.huggingface import bert
from hvp_engine.experiments.models.paper_names import paper_names
from hvp_engine.experiments.models.patches import Mixer, PatchConfig, ViT
from hvp_engine.experiments.models.vision import MLP, VGG, ResNet
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.remembered import remembered
from hvp_engine.experiments.tasks import Amounts, Order, on_images, on_masked_text, on_text

CHARACTERS = 84  # of the packaged plays; what a model is planned with where they are not installed
_TINY_GRID: Mapping[str, Sequence[float]] = {"sgd": (0.1, 0.03), "adam": (3e-3, 1e-3)}
_MASKED, _MASKED_IN_TRAINING = 0.15, 0.25  # shares; the larger one leaves the plateau of single characters sooner
_PHOTOGRAPH_CLASSES = 17
BERT_NOTE = (
    "The trained bert is looked at on 64 tokens and was trained on 32: embeddings of the second half of the positions "
    "are those of the start."
)

_Paths = tuple[tuple[str, Path], ...]
_Classifier = tuple[Family, Callable[[], nn.Module]]


@dataclass(frozen=True)
class _Scale:
    """What differs between small and tiny.

    Attributes:
        layers: Of the Transformers and the mixer.
        images: Where a Hessian is taken.
        sequences: Likewise, of 64 tokens.
        held_out: Images, or sequences times four.
        steps: Of a training, at most.
    """

    layers: int
    images: int
    sequences: int
    held_out: int
    steps: int


_SCALES = {"small": _Scale(4, 128, 16, 256, 100_000), "tiny": _Scale(2, 32, 4, 32, 8)}


def small_zoo(setting: Setting) -> dict[str, Entry]:
    """Make the entries of the sizes small and tiny."""
    scale = _SCALES[setting.size]
    entries = [
        *_on_digits(setting, scale),
        _gpt(setting, scale),
        _bert(setting, scale),
        *(_on_photographs(setting, scale) if setting.size == "small" else []),
    ]
    return {entry.name: entry for entry in entries}


def characters(setting: Setting, name: str = "shakespeare") -> Corpus:
    """Read the text that small language models train on: plays by character; at size tiny Python's sources by byte."""
    if setting.size == "tiny":
        return text.byte_text("stdlib", setting.data)
    return _characters(name, tuple(sorted(setting.data.items())))


def vocabulary(setting: Setting, name: str = "shakespeare") -> int:
    """Return the number of different characters in a text; that of the packaged plays where there is no text."""
    try:
        return characters(setting, name).vocabulary
    except ConfigurationError:
        return CHARACTERS


def order_of(setting: Setting) -> Order:
    """Return how the Hessian's tokens are chosen, ``--set order=``.

    Raises:
        ConfigurationError: There is no such order.
    """
    match setting.option("order", "random"):
        case "random":
            return "random"
        case "first":
            return "first"
        case other:
            raise ConfigurationError(f"order={other} is neither random nor first; give one of them.")


def _classifiers(scale: _Scale, side: int, patch: int, channels: int, classes: int) -> dict[str, _Classifier]:
    """Make the builders of the image classifiers by name, each with its family."""
    patches = PatchConfig(side, patch, channels, classes, layers=scale.layers)
    stages = ((16, 16), (32, 32), (64, 64))
    widths = (16, 32, 64)
    return {
        "mlp": ("mlp", partial(MLP, (channels * side * side, 64, 64, 64, classes))),
        "vgg": ("cnn", partial(VGG, stages, 128, classes, channels=channels, side=side)),
        "resnet": ("cnn", partial(ResNet, widths, classes, channels=channels)),
        "vit": ("transformer", partial(ViT, patches)),
        "mixer": ("mlp", partial(Mixer, patches)),
    }


def _on_digits(setting: Setting, scale: _Scale) -> list[Entry]:
    amounts = Amounts(scale.images, scale.images, 128 if setting.size == "small" else 32, scale.held_out)
    return [
        Entry(
            name,
            family,
            seeded(build),
            losses.classification,
            lambda seed: on_images(_digits(), amounts, seed),
            Recipe(_steps(setting, scale, 200), amounts.training),
            rates=_TINY_GRID if setting.size == "tiny" else GRID,
        )
        for name, (family, build) in _classifiers(scale, 8, 2, 1, 10).items()
    ]


def _on_photographs(setting: Setting, scale: _Scale) -> list[Entry]:
    amounts = Amounts(scale.images, scale.images, 32, scale.held_out)
    return [
        Entry(
            f"{name}-photographs",
            family,
            seeded(build),
            losses.classification,
            lambda seed: on_images(_photographs(), amounts, seed),
            Recipe(_steps(setting, scale, 400), amounts.training),
        )
        for name, (family, build) in _classifiers(scale, 32, 4, 3, _PHOTOGRAPH_CLASSES).items()
        if name != "mlp"
    ]


def _gpt(setting: Setting, scale: _Scale) -> Entry:
    amounts = Amounts(scale.sequences, 16, 16, scale.held_out // 4, 64, order_of(setting))

    def build() -> nn.Module:
        return GPT(GPTConfig(vocabulary(setting), 64, scale.layers, 4, 64, damp_wo=False))

    return Entry(
        "gpt",
        "transformer",
        seeded(build),
        losses.causal_lm,
        lambda seed: on_text(characters(setting), amounts, seed),
        Recipe(_steps(setting, scale, 800), amounts.training, clip=1.0),
        rates=_TINY_GRID if setting.size == "tiny" else GRID,
        choose=paper_names,
    )


def _bert(setting: Setting, scale: _Scale) -> Entry:
    """Make BERT, which trains on 32 tokens to leave the plateau of single ones within its steps.

    Hessians and held-out losses are on 64, as the paper has it: after training, too, they are at positions of which the
    second half has embeddings that no training has touched.
    """
    amounts = Amounts(scale.sequences, 16, 32, scale.held_out // 4, 64, order_of(setting), trained_length=32)

    def build() -> nn.Module:
        model: nn.Module = bert(vocabulary(setting, "dialogue") + 1, 64, width=64, layers=scale.layers, heads=4)
        return model

    return Entry(
        "bert",
        "transformer",
        seeded(build),
        losses.masked_lm,
        lambda seed: on_masked_text(characters(setting, "dialogue"), amounts, _MASKED, _MASKED_IN_TRAINING, seed),
        Recipe(_steps(setting, scale, 2000), amounts.training, clip=1.0),
        rates=_TINY_GRID if setting.size == "tiny" else GRID,
        choose=paper_names,
    )


def _steps(setting: Setting, scale: _Scale, steps: int) -> int:
    return setting.option("steps", min(steps, scale.steps))


@remembered(1)
def _digits() -> Images:
    return images.digits()


@remembered(1)
def _photographs() -> Images:
    return images.photographs(32)


@remembered(2)
def _characters(name: str, paths: _Paths) -> Corpus:
    return text.characters(name, dict(paths))
