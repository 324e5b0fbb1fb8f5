"""Entries that start from weights of another training, and pairs of one network at two starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.experiments.blockwise import Blockwise, measure
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting


@dataclass(frozen=True)
class Continued(Entry):
    """An entry whose ``build`` reads weights; names and shapes are those of a model that is made without them.

    Attributes:
        shapes: Makes that model; None makes the entry an ordinary one.
    """

    shapes: Callable[[], nn.Module] | None = None

    def meta(self) -> nn.Module:
        """Make the model without its weights on the meta device, in eval mode."""
        if self.shapes is None:
            return super().meta()
        with torch.device("meta"):
            return self.shapes().eval()


@dataclass(frozen=True)
class Studied(Continued):
    """An entry whose weights are read from files: names and shapes are those of the model that is read."""

    def meta(self) -> nn.Module:
        """Read the model; it is not made without its weights."""
        return self.build(0)


@dataclass(frozen=True)
class Pair:
    """The same network at two starts, with the same data, blocks and recipe.

    Attributes:
        random: At its random initialisation.
        pretrained: With the weights of another training.
        origin: Where these come from, for the manifest.
        steps: Lanczos steps; None takes those of the size.
        probes: Random vectors per block, likewise.
        blocks: The blocks of both; None takes the entries'.
    """

    random: Entry
    pretrained: Entry
    origin: Mapping[str, object]
    steps: int | None = None
    probes: int | None = None
    blocks: BlockSpec = None

    def measure(self, setting: Setting) -> tuple[Blockwise, Blockwise]:
        """Compute the blockwise spectra at both starts, or read them."""
        random, pretrained = (
            measure(setting, entry, steps=self.steps, probes=self.probes, blocks=self.blocks)
            for entry in (self.random, self.pretrained)
        )
        return random, pretrained
