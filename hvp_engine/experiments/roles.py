"""What a parameter does in its network, told by its name in any of the libraries; and the tensors that a paper lists.

Libraries rename modules from one major version to the next, so tensors are found by what they do. The lists are those
of "Understanding Why Adam Outperforms SGD" (arXiv 2502.00213): of a Transformer two norms, query, key, value and the
two layers of the MLP in the first, the middle and the last layer; of ResNet-18 the convolutions and the first norm of
every block in stages 1, 3 and 4; and the head. That makes 22 tensors of RoBERTa, 21 of ResNet-18, and 16 of a ViT whose
queries, keys and values are one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from torch import nn

from hvp_engine.errors import ConfigurationError

_PATTERNS = {  # the first that is found counts
    "norm": r"(^|\.)(\w*layer_?norm\w*|norm(_?\d+)*|normalization|ln_\w+|_?bn_?\d?)$",
    "head": r"(^|\.)(head|heads\.head|lm_head|classifier(\.\w+)?|_?fc|decoder)$",
    "query": r"(^|\.)(query|q_proj|wq)$",
    "key": r"(^|\.)(key|k_proj|wk)$",
    "value": r"(^|\.)(value|v_proj|wv)$",
    "qkv": r"(^|\.)(qkv|in_proj_weight|in_proj_bias|c_attn)$",
    "output": r"\.(o_proj|wo)$|(attn|attention)\.(out_proj|c_proj|proj|output(\.dense)?)$",
    "fc1": r"\.(fc1|c_fc|up_proj|linear1|intermediate\.dense|mlp\.0)$",
    "fc2": r"\.(fc2|c_proj|down_proj|linear2|output\.dense|mlp\.3)$",
    "embedding": r"embed|wte|wpe|cls_token|position",
    "convolution": r"conv|stem|shortcut|downsample|features",
}
_ROLES = {role: re.compile(pattern, re.IGNORECASE) for role, pattern in _PATTERNS.items()}
_LAYER = re.compile(r"(?:^|[._])(?:layers?|blocks|h)[._](\d+)\.")
_LISTED = ("norm", "query", "key", "value", "qkv", "fc1", "fc2")
_FUSED = ("query", "key", "value")
_CNN_LISTS = (
    (  # of transformers
        "*encoder.stages.[023].layers.?.layer.?.convolution.weight",
        "*encoder.stages.[023].layers.?.layer.0.normalization.weight",
        "*encoder.stages.[23].layers.?.shortcut.convolution.weight",
    ),
    ("blocks.*.conv_?.weight", "blocks.*.norm_1.weight", "blocks.*.shortcut.0.weight"),
    tuple(  # of EfficientNet: five of its 16 blocks
        f"*_blocks.{block}.{part}.weight"
        for block in (1, 4, 8, 11, 15)
        for part in ("_expand_conv", "_depthwise_conv", "_bn1", "_project_conv")
    ),
)


def role_of(name: str) -> str:
    """Return what a parameter does: ``"query"``, ``"fc1"``, ``"norm"``; ``"other"`` where its name does not say."""
    path = name.removesuffix(".weight").removesuffix(".bias")
    return next((role for role, pattern in _ROLES.items() if pattern.search(path)), "other")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter is in; None outside the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def is_key_bias(name: str) -> bool:
    """Say whether a parameter is the bias of keys, whose gradient is zero in exact arithmetic: softmax cancels it."""
    return role_of(name) == "key" and name.endswith("bias")


def every_tensor(model: nn.Module) -> dict[str, list[str]]:
    """Make a block of every parameter but the biases of keys."""
    return {name: [name] for name, _ in model.named_parameters() if not is_key_bias(name)}


def listed_tensors(model: nn.Module, fused: bool = False) -> dict[str, list[str]]:
    """Make a block of every tensor that the paper lists for a Transformer or a residual network.

    Args:
        model: The model.
        fused: Whether queries, keys and values of a layer are one block, as in torchvision's ViT.

    Raises:
        ConfigurationError: Nothing in the model has these names.
    """
    weights = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    heads = [name for name in weights if role_of(name) == "head"]
    tied = [name for name in weights if "embed_tokens" in name or "wte" in name]
    chosen = _of_transformer(weights) or _of_cnn(weights)
    if not chosen:
        raise ConfigurationError(
            f"No layers of a Transformer or blocks of a residual network are found in {type(model).__name__}; "
            "name its tensors as torch or transformers do."
        )
    blocks: dict[str, list[str]] = {}
    for name in chosen:
        own = f"{layer_of(name)}.qkv" if fused and role_of(name) in _FUSED else name.removesuffix(".weight")
        blocks.setdefault(own, []).append(name)
    return blocks | {name.removesuffix(".weight"): [name] for name in (heads or tied)[-1:]}


def _of_transformer(names: Iterable[str]) -> list[str]:
    """Return the listed tensors of the first, the middle and the last layer; none where no layer has attention."""
    placed = [(layer, name) for name in names if (layer := layer_of(name)) is not None and role_of(name) in _LISTED]
    layers = sorted({layer for layer, name in placed if role_of(name) in (*_FUSED, "qkv")})
    if not layers:
        return []
    chosen = (layers[0], layers[len(layers) // 2], layers[-1])
    return [name for layer, name in placed if layer in chosen]


def _of_cnn(names: Iterable[str]) -> list[str]:
    listed = list(names)
    for globs in _CNN_LISTS:
        found = [name for name in listed if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
        if found:
            return found
    return []
