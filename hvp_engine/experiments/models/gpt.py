"""A GPT in the layout of the paper: separate query, key, value and output projections, tied head.

The layout (no biases, pre-LayerNorm, separate projections, the head sharing the token embedding) is that of the GPT-2
studied in "Why Transformers Need Adam: A Hessian Perspective" (arXiv 2402.16788), so that its 25 blocks can be named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvp_engine.experiments.models.paper_names import paper_names


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT.

    Attributes:
        vocabulary: Number of token ids.
        context: Longest sequence in tokens.
        layers: Number of transformer layers.
        heads: Attention heads per layer; divides ``width``.
        width: Size of the residual stream.
        damp_wo: Whether the attention's output projections too are damped at initialisation, as in GPT-2; the paper's
            code damps those of the feed-forward layers only.
    """

    vocabulary: int = 256
    context: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    damp_wo: bool = True


class Attention(nn.Module):
    """Causal self-attention with four separate projections."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, width, bias=False)
        self.wv = nn.Linear(width, width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (batch, tokens, width) to the same shape."""
        batch, tokens, width = hidden.shape

        def split(projection: nn.Linear) -> Tensor:
            heads: Tensor = projection(hidden).view(batch, tokens, self.heads, width // self.heads)
            return heads.transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(self.wq), split(self.wk), split(self.wv), is_causal=True)
        output: Tensor = self.wo(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return output


class Layer(nn.Module):
    """One pre-LayerNorm transformer layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, bias=False)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.width, bias=False)
        self.c_fc = nn.Linear(config.width, 4 * config.width, bias=False)
        self.c_proj = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (batch, tokens, width) to the same shape."""
        hidden = hidden + self.attn(self.ln_1(hidden))
        update: Tensor = self.c_proj(F.gelu(self.c_fc(self.ln_2(hidden))))
        return hidden + update


class GPT(nn.Module):
    """Decoder-only language model; ``lm_head.weight`` is ``wte.weight``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, bias=False)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        damped = ("wo.weight", "c_proj.weight") if config.damp_wo else ("c_proj.weight",)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2: residual projections are damped by the number of residual additions.
                residual = name.endswith(damped)
                std = 0.02 / math.sqrt(2 * config.layers) if residual else 0.02
                nn.init.normal_(parameter, std=std)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Compute the final hidden states (batch, tokens, width) of token ids (batch, tokens)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        hidden: Tensor = self.wte(tokens) + self.wpe(positions)
        for layer in self.layers:
            hidden = layer(hidden)
        normalised: Tensor = self.ln_f(hidden)
        return normalised

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""
        logits: Tensor = self.lm_head(self.hidden(tokens))
        return logits


def paper_blocks(config: GPTConfig, layers: tuple[int, ...] | None = None) -> dict[str, list[str]]:
    """Name the paper's blocks of a GPT of these sizes: the embedding, and six projections of each of some layers.

    Args:
        config: The model's sizes.
        layers: Layer indices, as for :func:`hvp_engine.blocks.paper`.

    Returns:
        Mapping of block name to parameter names, for the ``blocks`` argument of :func:`hvp_engine.slq`.
    """
    with torch.device("meta"):
        return paper_names(GPT(config), layers)
