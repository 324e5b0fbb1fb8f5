"""The networks of the study with their blocks: how each is made, trained a little, and asked for its curvature.

No network, seed or data is among those that the estimators were chosen on. Training is short and seeded; its weights
are kept in the cache, since a few hundred steps on another machine end elsewhere in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.experiments.data.corpus import standard_library
from hvp_engine.experiments.models.gpt import GPT, GPTConfig

from .networks import Llama, LlamaConfig, PictureConfig, PictureNetwork

CONTEXT = 64
Batch = Any
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Network:
    """A network of the study.

    Attributes:
        name: Its name, also of its files in the cache.
        build: Makes it; the seed is set before.
        pictures: Whether it classifies pictures; it predicts bytes of text otherwise.
        seed: Of its weights, its training data and its pictures.
        training: AdamW steps; 0 leaves it at its initialisation.
        samples: Sequences of 64 bytes, or pictures of 16 patches, that the Hessian is of.
        blocks: Patterns by block name.
    """

    name: str
    build: Callable[[], nn.Module]
    pictures: bool
    seed: int
    training: int
    samples: int
    blocks: dict[str, list[str]]

    @property
    def loss(self) -> Loss:
        """The package's loss for what it predicts."""
        return losses.classification if self.pictures else losses.causal_lm


def pictures(count: int, seed: int, classes: int = 10, size: int = 16) -> tuple[Tensor, Tensor]:
    """Draw pictures of smooth templates, one a class, moved, mixed with another class's and with noise.

    Returns:
        Pictures (count, size, size) and classes (count,).
    """
    templates = torch.randn(classes, 1, size, size, generator=torch.Generator().manual_seed(77))
    smooth = nn.functional.avg_pool2d(nn.functional.pad(templates, (2, 2, 2, 2), mode="circular"), 5, stride=1)[:, 0]
    smooth = smooth / smooth.std(dim=(1, 2), keepdim=True)
    generator = torch.Generator().manual_seed(seed)

    def moved(labels: Tensor) -> Tensor:
        shifts = torch.randint(-2, 3, (count, 2), generator=generator).tolist()
        return torch.stack([smooth[k].roll(shift, (0, 1)) for k, shift in zip(labels.tolist(), shifts, strict=True)])

    labels, others = (torch.randint(0, classes, (count,), generator=generator) for _ in range(2))
    noise = torch.randn(count, size, size, generator=generator)
    return moved(labels) + 0.5 * moved(others) + 0.7 * noise, labels


def trained(network: Network, cache: Path) -> tuple[nn.Module, list[Batch]]:
    """Return a network in eval mode, from the cache or trained anew, and the data of its Hessian: one batch."""
    torch.manual_seed(network.seed)
    model = network.build()
    text = None if network.pictures else standard_library()
    samples = network.samples
    data = [pictures(samples, network.seed + 1) if text is None else text.sequences(samples, CONTEXT)]
    weights = cache / f"{network.name}.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval(), data
    generator = torch.Generator().manual_seed(network.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(network.training):
        batch = pictures(64, 1000 * network.seed + step) if text is None else text.batch(16, CONTEXT, generator)
        total, weight = network.loss(model, batch)
        optimizer.zero_grad()
        (total / weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), weights)
    return model.eval(), data


def _gpt(width: int, layers: int) -> Callable[[], nn.Module]:
    return lambda: GPT(GPTConfig(context=CONTEXT, width=width, layers=layers, heads=4))


def _llama(width: int, inner: int, layers: int) -> Callable[[], nn.Module]:
    return lambda: Llama(LlamaConfig(width, inner, layers))


def _picture(**sizes: int) -> Callable[[], nn.Module]:
    return lambda: PictureNetwork(PictureConfig(**sizes))


NETWORKS = (
    Network(
        "llama32",
        _llama(32, 88, 2),
        False,
        21,
        400,
        8,
        {
            "0.q": ["layers.0.attn.q.weight"],
            "1.o": ["layers.1.attn.o.weight"],
            "0.gate": ["layers.0.gate.weight"],
            "1.down": ["layers.1.down.weight"],
        },
    ),
    Network(
        "llama32-init",
        _llama(32, 88, 2),
        False,
        22,
        0,
        8,
        {"0.v": ["layers.0.attn.v.weight"], "1.o": ["layers.1.attn.o.weight"], "1.up": ["layers.1.up.weight"]},
    ),
    Network(
        "vit64",
        _picture(width=64, inner=256, layers=3),
        True,
        31,
        300,
        32,
        {
            "embed": ["embed.weight"],
            "0.q": ["layers.0.attn.q.weight"],
            "2.v": ["layers.2.attn.v.weight"],
            "layer": ["layers.2.*"],
            "full": ["*"],
        },
    ),
    Network(
        "mixer48",
        _picture(width=48, inner=192, layers=5, token_inner=64),
        True,
        41,
        120,
        32,
        {
            "0.token_1": ["layers.0.token_1.weight"],
            "4.token_2": ["layers.4.token_2.weight"],
            "full": ["*"],
        },
    ),
    Network(
        "gpt48",
        _gpt(48, 4),
        False,
        11,
        400,
        8,
        {
            "0.wq": ["layers.0.attn.wq.weight"],
            "2.wv": ["layers.2.attn.wv.weight"],
            "3.wo": ["layers.3.attn.wo.weight"],
            "full": ["*"],
        },
    ),
    Network(
        "llama96",
        _llama(96, 256, 4),
        False,
        23,
        250,
        4,
        {"1.down": ["layers.1.down.weight"], "layer": ["layers.3.*"], "full": ["*"]},
    ),
    Network(
        "gpt128",
        _gpt(128, 5),
        False,
        12,
        200,
        4,
        {"0.c_fc": ["layers.0.c_fc.weight"], "layer": ["layers.4.*"], "full": ["*"]},
    ),
)
