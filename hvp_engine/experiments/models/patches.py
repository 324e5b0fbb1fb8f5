"""Image classifiers that cut images into patches: a small ViT, Pre-LN or Post-LN, and the MLP-mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STD = 0.02


@dataclass(frozen=True)
class PatchConfig:
    """Sizes of a model on patches.

    Attributes:
        side: Of the images, in pixels.
        patch: Side of a patch.
        channels: Of the images.
        classes: Of the output.
        width: Of the residual stream.
        layers: How many.
        heads: Of a ViT's attention; divides ``width``.
    """

    side: int
    patch: int
    channels: int
    classes: int
    width: int = 64
    layers: int = 4
    heads: int = 4

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return (self.side // self.patch) ** 2

    def embedding(self) -> nn.Conv2d:
        """Make the layer that turns patches into tokens."""
        return nn.Conv2d(self.channels, self.width, self.patch, self.patch)


class Feedforward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., width) to the same shape."""
        output: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return output


class SelfAttention(nn.Module):
    """Attention of all tokens to all, with four separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (n, tokens, width) to the same shape."""
        q, k, v = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class ViTLayer(nn.Module):
    """A Transformer layer; where its LayerNorms stand is ``norm``."""

    def __init__(self, config: PatchConfig, norm: Literal["pre", "post"]) -> None:
        super().__init__()
        self.is_post = norm == "post"
        self.attention = SelfAttention(config.width, config.heads)
        self.norm_1 = nn.LayerNorm(config.width)
        self.feedforward = Feedforward(config.width, 4 * config.width)
        self.norm_2 = nn.LayerNorm(config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (n, tokens, width) to the same shape."""
        if self.is_post:
            hidden = self.norm_1(hidden + self.attention(hidden))
            normalised: Tensor = self.norm_2(hidden + self.feedforward(hidden))
            return normalised
        hidden = hidden + self.attention(self.norm_1(hidden))
        output: Tensor = hidden + self.feedforward(self.norm_2(hidden))
        return output


class ViT(nn.Module):
    """A vision Transformer with a class token; weights are drawn from a truncated normal of deviation 0.02."""

    def __init__(self, config: PatchConfig, norm: Literal["pre", "post"] = "pre") -> None:
        super().__init__()
        self.patch_embedding = config.embedding()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.position_embedding = nn.Parameter(torch.empty(1, config.patches + 1, config.width))
        self.layers = nn.ModuleList(ViTLayer(config, norm) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(config.width, config.classes)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits (n, classes)."""
        tokens = self.patch_embedding(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.position_embedding
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden[:, 0]))
        return logits


class MixerLayer(nn.Module):
    """An MLP over patches, then one over channels, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, config: PatchConfig, token_hidden: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width)
        self.tokens = Feedforward(config.patches, token_hidden)
        self.norm_2 = nn.LayerNorm(config.width)
        self.channels = Feedforward(config.width, 4 * config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (n, patches, width) to the same shape."""
        hidden = hidden + self.tokens(self.norm_1(hidden).transpose(1, 2)).transpose(1, 2)
        output: Tensor = hidden + self.channels(self.norm_2(hidden))
        return output


class Mixer(nn.Module):
    """An MLP-mixer (Tolstikhin et al. 2021) with PyTorch's own initialisation of its layers."""

    def __init__(self, config: PatchConfig, token_hidden: int | None = None) -> None:
        """Make the layers.

        Args:
            config: Sizes; it has no heads.
            token_hidden: Hidden size of the MLP over patches; None takes twice their number.
        """
        super().__init__()
        self.patch_embedding = config.embedding()
        hidden = 2 * config.patches if token_hidden is None else token_hidden
        self.layers = nn.ModuleList(MixerLayer(config, hidden) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits (n, classes)."""
        hidden = self.patch_embedding(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden).mean(dim=1))
        return logits
