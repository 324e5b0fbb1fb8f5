"""The net whose Hessian is looked at whole: two layers without biases, a few neurons wide."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hvp_engine.problem.randomness import fixed_numbers

LAYERS = ("fc1.weight", "fc2.weight")


class TwoLayer(nn.Module):
    """Logits V relu(W x), as in the follow-up code of arXiv 2402.16788 on the structure of Hessians.

    Attributes:
        fc1: W, one row of incoming weights per hidden neuron.
        fc2: V, one row of incoming weights per class.
    """

    def __init__(self, inputs: int, width: int, classes: int, seed: int) -> None:
        """Draw the weights of a seed, with PyTorch's deviations.

        Args:
            inputs: Numbers per sample.
            width: Hidden neurons.
            classes: Logits.
            seed: Decides the weights; the process's generators are left as they were.
        """
        super().__init__()
        with fixed_numbers(seed):
            self.fc1 = nn.Linear(inputs, width, bias=False)
            self.fc2 = nn.Linear(width, classes, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (batch, ...) to logits (batch, classes)."""
        logits: Tensor = self.fc2(F.relu(self.fc1(inputs.flatten(1))))
        return logits
