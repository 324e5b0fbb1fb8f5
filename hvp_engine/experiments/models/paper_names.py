"""The paper's blocks of a model, by the names of their parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hvp_engine.blocks import paper


def paper_names(model: nn.Module, layers: Sequence[int] | None = None) -> dict[str, list[str]]:
    """Name the parameters of every block of :func:`hvp_engine.blocks.paper`, for models without fused projections.

    Args:
        model: The model, on the meta device maybe.
        layers: Numbers of the layers, in place of the paper's.

    Raises:
        BlockError: The model is laid out in a way that is not known.
    """
    return {name: [parameter for parameter, _ in block.parts] for name, block in paper(model, layers).items()}
