"""Pixels as networks that were trained on ImageNet take them."""

from __future__ import annotations

import torch
from torch import Tensor

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's weights have it
_DEVIATION = (0.229, 0.224, 0.225)


def normalised(pictures: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation, channel by channel.

    Args:
        pictures: (samples, 3, height, width) with values from 0 to 1.
    """
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
    return (pictures - mean) / deviation
