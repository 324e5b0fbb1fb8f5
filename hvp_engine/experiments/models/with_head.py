"""A body with a new linear head on its features: how a pre-trained network starts on a new task."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hvp_engine.problem.randomness import fixed_numbers

_STD = 0.02  # of the head's weights, as transformers and the paper's code have it


class WithHead(nn.Module):
    """A body of transformers, and a linear layer on its last hidden state: of the first token, or the mean of a map."""

    def __init__(self, body: nn.Module, features: int, classes: int, seed: int) -> None:
        """Make the head.

        Args:
            body: Returns an output with ``last_hidden_state``, (n, tokens, features) or (n, features, h, w).
            features: Size of the hidden state.
            classes: Of the output.
            seed: Decides the head's weights.
        """
        super().__init__()
        self.body = body
        self.head = new_head(features, classes, seed)

    def forward(self, *inputs: Tensor, **named: Any) -> Tensor:
        """Map what the body takes to logits (n, classes)."""
        hidden = self.body(*inputs, **named).last_hidden_state
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)) if hidden.dim() == 4 else hidden[:, 0])
        return logits


def new_head(features: int, classes: int, seed: int) -> nn.Linear:
    """Make a linear layer with normal weights of deviation 0.02 and no bias at first."""
    with fixed_numbers(seed):
        head = nn.Linear(features, classes)
        nn.init.normal_(head.weight, std=_STD)
    nn.init.zeros_(head.bias)
    return head


def usual_head(features: int, classes: int, seed: int) -> nn.Linear:
    """Make a linear layer with the weights that PyTorch draws."""
    with fixed_numbers(seed):
        return nn.Linear(features, classes)
