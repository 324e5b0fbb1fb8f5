"""Small image classifiers that no library has at these sizes: MLP, VGG, ResNet; all map (n, c, h, w) to (n, classes).

VGG and ResNet follow the code released with arXiv 2402.16788 in layout and initialisation, without dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, He's initialisation and no bias at first: positively homogeneous there."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Make the layers.

        Args:
            sizes: Of input, hidden layers and output.
        """
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, ...) to logits."""
        hidden = images.flatten(1)
        for layer in self.layers[:-1]:
            hidden = F.relu(layer(hidden))
        logits: Tensor = self.layers[-1](hidden)
        return logits


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions, each ended by max-pooling, then three linear layers."""

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        hidden: int,
        classes: int,
        *,
        channels: int,
        side: int,
        head_std: float | None = None,
        batch_norm: bool = False,
    ) -> None:
        """Make the layers.

        Args:
            stages: Channels of every convolution, by stage.
            hidden: Size of the two hidden linear layers.
            classes: Of the output.
            channels: Of the images.
            side: Of the images, in pixels.
            head_std: Standard deviation of the linear weights; None takes He's.
            batch_norm: Whether a BatchNorm follows every convolution; the other parameters have the same names.
        """
        super().__init__()
        self.features = nn.Sequential()
        for i, stage in enumerate(stages):
            for j, width in enumerate(stage):
                self.features.add_module(f"conv_{i}_{j}", nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    self.features.add_module(f"norm_{i}_{j}", nn.BatchNorm2d(width))
                self.features.add_module(f"relu_{i}_{j}", nn.ReLU())
                channels = width
            self.features.add_module(f"pool_{i}", nn.MaxPool2d(2))
        flat = channels * (side >> len(stages)) ** 2
        self.classifier = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )
        initialise(self)
        if head_std is not None:
            for layer in self.classifier:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=head_std)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = self.norm_2(self.conv_2(F.relu(self.norm_1(self.conv_1(hidden)))))
        return F.relu(inner + self.shortcut(hidden))


class ResNet(nn.Module):
    """A ResNet for small images: a 3 x 3 stem without pooling, two basic blocks a stage, mean-pooling."""

    def __init__(self, widths: Sequence[int], classes: int, *, channels: int) -> None:
        """Make the layers.

        Args:
            widths: Channels of every stage; each but the first halves the side.
            classes: Of the output.
            channels: Of the images.
        """
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            blocks += [BasicBlock(inputs, outputs, 2 if stage else 1), BasicBlock(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self, linear=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits."""
        hidden = self.blocks(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


def initialise(model: nn.Module, *, linear: bool = True) -> None:
    """Draw weights as He et al. do, by a convolution's outputs and a linear layer's inputs; zero their biases.

    Args:
        model: Whose convolutions and linear layers.
        linear: Whether linear layers too; False leaves them as PyTorch makes them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear) and linear:
            fan = module.in_features
        else:
            continue
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
