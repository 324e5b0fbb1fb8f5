"""Networks of three families that the package has no model of, in plain PyTorch: Llama, ViT and MLP-mixer.

They are small and have separate projections, so that a block is a named matrix. Pictures are (samples, side, side).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama; ``inner`` is the width of its gated layer, ``vocabulary`` that of embedding and head."""

    width: int
    inner: int
    layers: int
    heads: int = 4
    vocabulary: int = 256


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weight


def rotate(hidden: Tensor) -> Tensor:
    """Turn pairs of channels by angles that grow with the position: (batch, heads, tokens, size) to the same."""
    tokens, half = hidden.shape[-2], hidden.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=hidden.dtype, device=hidden.device) / half)
    angle = torch.arange(tokens, dtype=hidden.dtype, device=hidden.device)[:, None] * frequency
    first, second = hidden.chunk(2, dim=-1)
    return torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), -1)


class Attention(nn.Module):
    """Self-attention with separate projections, causal and rotary or neither."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (batch, tokens, width) to the same shape."""
        batch, tokens, width = hidden.shape

        def split(projection: nn.Linear) -> Tensor:
            return projection(hidden).view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.q), split(self.k), split(self.v)
        if self.causal:
            query, key = rotate(query), rotate(key)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.o(mixed.transpose(1, 2).reshape(batch, tokens, width))


class LlamaLayer(nn.Module):
    """RMSNorm, rotary attention, RMSNorm, SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = RMSNorm(config.width), RMSNorm(config.width)
        self.attn = Attention(config.width, config.heads, causal=True)
        self.gate, self.up = (nn.Linear(config.width, config.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (batch, tokens, width) to the same shape."""
        hidden = hidden + self.attn(self.norm_1(hidden))
        inner = self.norm_2(hidden)
        return hidden + self.down(F.silu(self.gate(inner)) * self.up(inner))


class Llama(nn.Module):
    """Decoder-only language model whose head is its own."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden))


def patches(pictures: Tensor, side: int) -> Tensor:
    """Cut pictures (batch, size, size) into (batch, patches, side * side)."""
    cut = pictures.unfold(1, side, side).unfold(2, side, side)
    return cut.reshape(len(pictures), -1, side * side)


@dataclass(frozen=True)
class PictureConfig:
    """Sizes of a ViT or a mixer; a mixer's ``token_inner`` is the width of its layer over patches."""

    width: int
    inner: int
    layers: int
    heads: int = 4
    token_inner: int = 0
    patch: int = 4
    patches: int = 16
    classes: int = 10


class VitLayer(nn.Module):
    """One pre-LayerNorm encoder layer."""

    def __init__(self, config: PictureConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads, causal=False)
        self.fc1, self.fc2 = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (batch, patches, width) to the same shape."""
        hidden = hidden + self.attn(self.norm_1(hidden))
        return hidden + self.fc2(F.gelu(self.fc1(self.norm_2(hidden))))


class MixerLayer(nn.Module):
    """An MLP over patches, then one over channels."""

    def __init__(self, config: PictureConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.token_1, self.token_2 = (
            nn.Linear(config.patches, config.token_inner),
            nn.Linear(config.token_inner, config.patches),
        )
        self.fc1, self.fc2 = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (batch, patches, width) to the same shape."""
        across = self.norm_1(hidden).transpose(1, 2)
        hidden = hidden + self.token_2(F.gelu(self.token_1(across))).transpose(1, 2)
        return hidden + self.fc2(F.gelu(self.fc1(self.norm_2(hidden))))


class PictureNetwork(nn.Module):
    """Patches, layers of one kind, the mean over patches, classes."""

    def __init__(self, config: PictureConfig) -> None:
        super().__init__()
        self.patch = config.patch
        kind = MixerLayer if config.token_inner else VitLayer
        self.embed = nn.Linear(config.patch**2, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(config.patches, config.width))
        self.layers = nn.ModuleList(kind(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute logits (batch, classes) of pictures (batch, size, size)."""
        hidden = self.embed(patches(pictures, self.patch)) + self.position
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden).mean(1))
