"""The blocks that papers on Hessian spectra look at, in the models that people have."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hvp_engine.blocks.attention_layers import Layer, Transformer, UnknownLayoutError, find_transformer, matrices
from hvp_engine.blocks.layouts import fused_projection, owner_of
from hvp_engine.blocks.partition import Block, Names
from hvp_engine.blocks.pieces import projections
from hvp_engine.blocks.residual import ResNet, find_resnet
from hvp_engine.errors import BlockError

_KNOWN = (
    "language models of the families of GPT-2, Llama, Mistral, Qwen2, Gemma, BERT and RoBERTa, vision Transformers "
    "(ViT, DINOv2) and ResNets, of transformers, torchvision and the like, or your own with one list of like layers"
)
_DECODER = ("wte", ("wq", "wk", "wv"), "wo", ("c_fc", "c_proj"))
_ENCODER = ("embedding", ("query", "key", "value"), "output", ("fc1", "fc2"))
_GATED = ("gate", "up", "down")


def paper(model: nn.Module, layers: Sequence[int] | None = None) -> dict[str, Block]:
    """Name the blocks of a model that "Why Transformers Need Adam" (arXiv 2402.16788) looks at, in its order.

    They are found by what they do (types, shapes, positions), so that they have the same names in every library and
    version. Biases, norms and position embeddings are in no block; neither are poolers, nor what lies between a pooler
    and a classifier.

    - GPT-2 and models of Llama's kind: ``wte``; of four layers spread over the depth (0, 3, 7, 11 of 12) ``<i>.wq``,
      ``<i>.wk``, ``<i>.wv``, ``<i>.wo``, and ``<i>.c_fc``, ``<i>.c_proj``, or with a gate ``<i>.gate``, ``<i>.up``,
      ``<i>.down``; ``head`` where it is not tied to the embedding. 25 of GPT-2.
    - BERT and RoBERTa: ``embedding``; likewise ``<i>.query``, ``<i>.key``, ``<i>.value``, ``<i>.output``, ``<i>.fc1``,
      ``<i>.fc2``; ``transform``, the dense layer before the decoder of masked tokens; ``head`` where it is not tied.
    - ViT and DINOv2: ``patch_embed``; of the first, the middle and the last layer ``<i>.qkv`` (one block, also where
      they are three tensors), ``<i>.proj``, ``<i>.fc1``, ``<i>.fc2``; ``head``. 14 in all.
    - ResNet: every convolution and the head, by the names that torchvision gives them: ``conv1``, ``layer1.0.conv1``,
      ``layer2.0.downsample``, ``fc``. 21 of a ResNet-18.

    A language model counts as a BERT where a norm stands with its embeddings, apart from its layers. Queries, keys and
    values that are fused into one tensor are cut apart as :func:`projections` cuts them.

    Args:
        model: The network; only names, types and shapes are looked at, so that one on the meta device will do.
        layers: Numbers of the layers to take, in place of the paper's; for Transformers only.

    Returns:
        Blocks by name, for ``blocks=`` of every call: whole, ``{**paper(model), "full": "*"}``, or some of them.

    Raises:
        BlockError: The model is laid out in a way that is not known here, or a number of a layer is out of range.
    """
    Names(model)  # which refuses a model without parameters, or whose shapes are not known yet
    try:
        transformer = find_transformer(model)
        if transformer is not None:
            return _of_transformer(model, transformer, layers)
    except UnknownLayoutError as error:
        raise _refusal(model, str(error)) from None
    resnet = find_resnet(model)
    if resnet is None:
        raise _refusal(
            model, "It has no layers with attention, and no stages of residual blocks after one convolution."
        )
    if layers is not None:
        raise BlockError("layers= chooses layers of a Transformer, and this is a ResNet; leave it out.")
    return _of_resnet(resnet)


def _of_transformer(model: nn.Module, found: Transformer, layers: Sequence[int] | None) -> dict[str, Block]:
    count = len(found.layers)
    if layers is not None and not _are_layers(layers, count):
        raise BlockError(f"layers={layers!r} must be a list of numbers from 0 to {count - 1}, each once.")
    table = next((name for name in found.before if isinstance(model.get_submodule(name), nn.Embedding)), None)
    if table is None:
        return _of_vit(model, found, layers or sorted({0, count // 2, count - 1}))
    _no_weight_of(model, found.before)
    last = count - 1
    chosen = layers or sorted({0, last // 3, 2 * last // 3, last})
    embedding, qkv, output, mlp = _ENCODER if _is_encoder(model, found) else _DECODER
    parts = [Block(embedding, [(f"{table}.weight", None)])]
    for number in chosen:
        layer = found.layers[number]
        parts += _projections(model, layer, [f"{number}.{name}" for name in qkv])
        parts += _rest(layer, number, output, mlp)
    return {block.name: block for block in (*parts, *_language_head(model, found))}


def _of_vit(model: nn.Module, found: Transformer, layers: Sequence[int]) -> dict[str, Block]:
    """Take queries, keys and values of a layer as one block, as torchvision and timm keep them."""
    embeddings = _weights_in(model, found.before)
    if len(embeddings) != 1:
        raise UnknownLayoutError(
            f"Before its layers it has no table of tokens, and {len(embeddings)} patch embeddings."
        )
    blocks = [Block("patch_embed", [(embeddings[0], None)])]
    for number in layers:
        layer = found.layers[number]
        blocks.append(Block(f"{number}.qkv", [(name, None) for name in layer.attention]))
        blocks += _rest(layer, number, "proj", ("fc1", "fc2"))
    heads = _heads(model, found)
    return {block.name: block for block in (*blocks, *(Block("head", [(name, None)]) for name in heads[-1:]))}


def _projections(model: nn.Module, layer: Layer, names: Sequence[str]) -> list[Block]:
    """Make the blocks of queries, keys and values, cut apart where they are fused."""
    if len(layer.attention) == len(names):
        return [Block(name, [(weight, None)]) for name, weight in zip(names, layer.attention, strict=True)]
    (fused,) = layer.attention
    known = fused_projection(model, fused)
    if known is None or known.layout is None:
        raise UnknownLayoutError(
            f"How {fused!r} keeps queries, keys and values is not certain; hvp_engine.blocks.projections(model, "
            f'{fused!r}, layout="stacked"), or layout="per_head", cuts it.'
        )
    return [Block(name, cut.parts) for name, cut in zip(names, projections(model, fused), strict=True)]


def _rest(layer: Layer, number: int, output: str, mlp: Sequence[str]) -> list[Block]:
    named = [(output, layer.output), *zip(mlp if len(layer.mlp) == len(mlp) else _GATED, layer.mlp, strict=True)]
    return [Block(f"{number}.{name}", [(weight, None)]) for name, weight in named]


def _language_head(model: nn.Module, found: Transformer) -> list[Block]:
    """Take what predicts: the dense layer with a norm beside it, and the last layer after it, unless it is tied."""
    canonical = Names(model).canonical
    heads = _heads(model, found)
    dense = next((name for name in heads if _is_normalised(model, name)), None)
    blocks = [] if dense is None else [Block("transform", [(dense, None)])]
    after = heads[-1:] if dense is None else heads[heads.index(dense) + 1 :][:1]
    return blocks + [Block("head", [(name, None)]) for name in after if canonical[name] == name]


def _heads(model: nn.Module, found: Transformer) -> list[str]:
    """List the weights after the layers, without those of poolers."""
    weights = _weights_in(model, found.after)
    users = {name: owner_of(model, name).user for name in weights}
    return [name for name, user in users.items() if user is model or "pool" not in type(user).__name__.lower()]


def _weights_in(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """List the weights of linear layers and convolutions that some modules own themselves."""
    wanted = set(modules)
    return [name for name in matrices(model) if name.endswith(".weight") and name.rpartition(".")[0] in wanted]


def _no_weight_of(model: nn.Module, modules: Sequence[str]) -> None:
    strange = _weights_in(model, modules)
    if strange:
        raise UnknownLayoutError(f"{strange[0]!r} is registered before its layers, and is no table of tokens.")


def _of_resnet(found: ResNet) -> dict[str, Block]:
    weights = {"conv1": found.stem}
    for stage, blocks in enumerate(found.stages, 1):
        for number, block in enumerate(blocks):
            place = f"layer{stage}.{number}"
            weights |= {f"{place}.conv{i}": name for i, name in enumerate(block.convolutions, 1)}
            if block.shortcut is not None:
                weights[f"{place}.downsample"] = block.shortcut
    if found.head is not None:
        weights["fc"] = found.head
    return {name: Block(name, [(weight, None)]) for name, weight in weights.items()}


def _are_layers(layers: object, count: int) -> bool:
    if not isinstance(layers, Sequence) or not layers:
        return False
    return all(isinstance(layer, int) and 0 <= layer < count for layer in layers) and len(set(layers)) == len(layers)


def _is_encoder(model: nn.Module, found: Transformer) -> bool:
    """Say whether a norm is registered before the layers, in a module that does not hold the layers too."""
    norms = [name.rpartition(".")[0] for name in found.before if _is_norm(model.get_submodule(name))]
    return any(holder and not found.layers[0].output.startswith(f"{holder}.") for holder in norms)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def _is_normalised(model: nn.Module, name: str) -> bool:
    """Say whether a weight is square, and a norm follows its layer in the same module."""
    owner = owner_of(model, name)
    shape = model.get_parameter(name).shape
    children = list(owner.user.named_children())
    place = [child for child, _ in children].index(owner.name)
    return shape[0] == shape[1] and any(_is_norm(child) for _, child in children[place:])


def _refusal(model: nn.Module, reason: str) -> BlockError:
    return BlockError(
        f"The papers' blocks of {type(model).__name__} are not known. {reason} Known are {_KNOWN}. Name blocks of your "
        "own: blocks='parameter', or a mapping of names to globs."
    )
