"""Weights out of an ONNX file: a state dict under the names that the exported model's parameters had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import ConfigurationError

POSITIONS = "embeddings.position_embeddings"
_BIAS, _WEIGHT = ".bias", ".weight"


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        operation: Its type, such as ``"MatMul"``.
        inputs: Names of what goes in.
        outputs: Names of what comes out.
    """

    operation: str
    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Graph:
    """What is needed of an ONNX file.

    Attributes:
        nodes: Its operations.
        constants: Its weights by name, those that an exporter has folded and renamed among them.
    """

    nodes: Sequence[Node]
    constants: Mapping[str, NDArray[np.generic]]


def read_graph(file: Path) -> Graph:
    """Read operations and weights of an ONNX file.

    Raises:
        ConfigurationError: The package onnx is not installed, or the file is no ONNX file.
    """
    try:
        import onnx  # noqa: PLC0415  # of an extra
        from onnx import numpy_helper  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"{file} needs the package onnx to be read; pip install 'hvp-engine[experiments-weights]'."
        ) from error
    try:
        graph = onnx.load(str(file)).graph
    except Exception as error:  # google.protobuf's DecodeError, which has no public home
        raise ConfigurationError(f"{file} is no ONNX file ({error}); copy it again.") from error
    nodes = [Node(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node]
    return Graph(nodes, {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer})


def state_dict(graph: Graph, prefix: str) -> dict[str, Tensor]:
    """Collect the weights of the part of a graph whose parameters have a prefix.

    Exporters keep the names of biases and norms. The matrix of a linear layer is transposed and renamed; here it gets
    its name back from the bias that is added to its product.

    Args:
        graph: The graph.
        prefix: Of the names, ``"backbone."``; it is taken off.

    Returns:
        Tensors by name.
    """
    named = {name: array for name, array in graph.constants.items() if name.startswith(prefix)}
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    for node in graph.nodes:
        if node.operation != "MatMul" or node.inputs[1] not in graph.constants:
            continue
        for reader in readers.get(node.outputs[0], []):
            for bias in reader.inputs:
                if reader.operation == "Add" and bias in named and bias.endswith(_BIAS):
                    named[bias.removesuffix(_BIAS) + _WEIGHT] = graph.constants[node.inputs[1]].T
    return {name.removeprefix(prefix): torch.from_numpy(np.array(array)) for name, array in named.items()}


def with_positions(weights: Mapping[str, Tensor], graph: Graph, width: int) -> dict[str, Tensor]:
    """Add the position embeddings of a ViT, which an exporter has cut into class token's and patches'.

    Args:
        weights: Weights by name.
        graph: Where they come from.
        width: Of the model: embeddings are the constants of shape (1, 1, width) and (1, n * n, width) without a name.

    Returns:
        The weights with ``embeddings.position_embeddings`` (1, 1 + n * n, width).

    Raises:
        ConfigurationError: There is not one of each.
    """
    nameless = [array for name, array in graph.constants.items() if name.startswith("onnx::") and array.ndim == 3]
    found = [array for array in nameless if array.shape[0] == 1 and array.shape[2] == width]
    first = [array for array in found if array.shape[1] == 1]
    patches = [array for array in found if array.shape[1] > 1 and math.isqrt(array.shape[1]) ** 2 == array.shape[1]]
    if len(first) != 1 or len(patches) != 1:
        raise ConfigurationError(
            f"The ONNX file has {len(first)} and {len(patches)} constants that may be position embeddings, not one and "
            "one; give weights that were exported from a DINOv2 of transformers."
        )
    return {**weights, POSITIONS: torch.from_numpy(np.concatenate([first[0], patches[0]], axis=1))}
