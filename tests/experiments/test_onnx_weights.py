"""Weights out of an ONNX graph as an exporter leaves it: matrices nameless and transposed, positions cut in two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.onnx_weights import Graph, Node, state_dict, with_positions
from hvp_engine.experiments.weights import dinov2

WIDTH, LAYERS, SIDE, PATCH = 64, 2, 3, 14
POSITIONS = "embeddings.position_embeddings"
_RELEASED = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}


def tiny_dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=1, image_size=SIDE * PATCH)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def released_names(model: nn.Module) -> dict[str, np.ndarray]:
    """The state dict under the names that DINOv2 was released with, whichever transformers made it."""
    renamed = {}
    for full_name, tensor in model.state_dict().items():
        role = next((new for new in _RELEASED if f"attention.{new}." in full_name), None)
        renamed[full_name if role is None else full_name.replace(role, _RELEASED[role])] = tensor.numpy()
    return renamed


def exported(model: nn.Module) -> Graph:
    """The graph as PyTorch's exporter writes it: what matters of it."""
    nodes, constants = [], {}
    for number, (name, array) in enumerate(released_names(model).items()):
        linear = name.endswith(".weight") and array.ndim == 2
        if name == POSITIONS:
            constants["onnx::Concat_7"], constants["onnx::Reshape_8"] = array[:, :1], array[:, 1:]
        elif linear:
            constants[f"onnx::MatMul_{number}"] = array.T
            bias = f"backbone.{name.removesuffix('.weight')}.bias"
            nodes.append(Node("MatMul", (f"x{number}", f"onnx::MatMul_{number}"), (f"y{number}",)))
            nodes.append(Node("Add", (bias, f"y{number}"), (f"z{number}",)))
        elif name != "embeddings.mask_token":
            constants[f"backbone.{name}"] = array
    constants["head.conv.weight"] = np.ones((1, 1))
    nodes.append(Node("MatMul", ("a", "b"), ("c",)))  # of attention: no constant
    return Graph(nodes, constants)


def test_every_weight_gets_its_name_back() -> None:
    model = tiny_dinov2()
    expected = released_names(model)
    graph = exported(model)
    found = with_positions(state_dict(graph, "backbone."), graph, WIDTH)
    assert set(found) == set(expected) - {"embeddings.mask_token"}
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name], err_msg=name)


def test_the_converted_model_is_the_exported_one() -> None:
    model = tiny_dinov2()
    converted = dinov2(exported(model))
    pictures = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    with torch.no_grad():
        expected, found = (one.eval()(pictures).last_hidden_state for one in (model, converted))
    torch.testing.assert_close(found, expected)


def test_a_missing_weight_is_named() -> None:
    graph = exported(tiny_dinov2())
    lacking = {name: array for name, array in graph.constants.items() if "layer.1.norm1.bias" not in name}
    with pytest.raises(ConfigurationError, match=r"encoder\.layer\.1\.norm1\.bias.*are missing"):
        dinov2(Graph(graph.nodes, lacking))


def test_positions_that_cannot_be_told_are_refused() -> None:
    graph = exported(tiny_dinov2())
    doubled = {**graph.constants, "onnx::Concat_9": np.zeros((1, 1, WIDTH), dtype=np.float32)}
    with pytest.raises(ConfigurationError, match="has 2 and 1 constants that may be position embeddings"):
        dinov2(Graph(graph.nodes, doubled))


def test_a_file_is_read_as_the_graph_in_it(tmp_path: Path) -> None:
    import onnx

    from hvp_engine.experiments.onnx_weights import read_graph

    graph = exported(tiny_dinov2())
    made = onnx.helper.make_graph(
        [onnx.helper.make_node(node.operation, node.inputs, node.outputs) for node in graph.nodes],
        "tiny",
        [],
        [],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in graph.constants.items()],
    )
    file = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(made), str(file))
    read = read_graph(file)
    assert [node.operation for node in read.nodes] == [node.operation for node in graph.nodes]
    assert set(read.constants) == set(graph.constants)
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(ConfigurationError, match="is no ONNX file"):
        read_graph(file)
