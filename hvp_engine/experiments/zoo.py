"""The models of the experiments by name, at the size that is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting


def zoo(setting: Setting) -> Mapping[str, Entry]:
    """Make the entries of a size; neither models nor data are made before an entry is asked for them.

    Args:
        setting: Size, paths of data, options.

    Returns:
        Entries by name: ``mlp``, ``vgg``, ``resnet``, ``vit``, ``mixer``, ``bert``, ``gpt``; at paper size also ``gpt2``;
        at small size ``vgg-photographs``, ``vit-photographs``, ``mixer-photographs`` and ``resnet-photographs``.
    """
    raise NotImplementedError
