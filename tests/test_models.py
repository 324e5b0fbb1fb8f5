"""Models as people have them, not one line changed: the doctor is content and the products are those of plain PyTorch.

Small configurations with random weights, default attention, eval mode. The reference is a second backward pass in
float64 through the math path of attention, without any of the engine's operations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import hvp_engine as he
from hvp_engine.problem.batches import map_tensors

VOCABULARY, TOKENS, CLASSES = 61, 9, 5
STD = 0.1  # of the weights: away from the nearly linear regime of the default


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these run fastest so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gpt2() -> tuple[nn.Module, Any, list[Any]]:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=24, n_layer=2, n_head=3, initializer_range=STD)
    return GPT2LMHeadModel(config), he.losses.causal_lm, causal_batches()


def llama() -> tuple[nn.Module, Any, list[Any]]:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=STD,
    )
    return LlamaForCausalLM(config), he.losses.causal_lm, causal_batches()


def bert() -> tuple[nn.Module, Any, list[Any]]:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=16,
        initializer_range=STD,
    )
    data = []
    for batch in causal_batches():
        labels = batch["input_ids"].clone()
        labels[:, ::2] = he.losses.IGNORE
        data.append({**batch, "labels": labels})
    return BertForMaskedLM(config), he.losses.masked_lm, data


def vit() -> tuple[nn.Module, Any, list[Any]]:
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        initializer_range=STD,
    )
    return ViTForImageClassification(config), he.losses.classification, image_batches(8)


def resnet() -> tuple[nn.Module, Any, list[Any]]:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
    model = ResNetForImageClassification(config)
    model.train()
    for batch in image_batches(32):
        model(batch["pixel_values"])  # statistics of the normalisations
    return model, he.losses.classification, image_batches(32)


class SequenceClassifier(nn.Module):
    """The encoder layers of PyTorch, as in its tutorials."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True)
        self.embed = nn.Embedding(VOCABULARY, 24)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0).mean(1))
        return hidden


def encoder() -> tuple[nn.Module, Any, list[Any]]:
    data = [(tokens(n), torch.arange(n) % CLASSES) for n in (3, 2)]
    data[0][0][0, -2:] = 0  # padding
    return SequenceClassifier(), he.losses.classification, data


class MixerBlock(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.over_patches = nn.Sequential(nn.Linear(patches, 12), nn.GELU(), nn.Linear(12, patches))
        self.over_channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_patches(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.over_channels(self.norms[1](x))
        return mixed


class Mixer(nn.Module):
    """An MLP-mixer (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(4, 16), MixerBlock(4, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.blocks(self.patches(pixel_values).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def mixer() -> tuple[nn.Module, Any, list[Any]]:
    model = Mixer()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(3.0)  # as STD does
    return model, he.losses.classification, image_batches(8)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, list[Any]]]] = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": bert,
    "vit": vit,
    "resnet": resnet,
    "encoder": encoder,
    "mixer": mixer,
}


def tokens(samples: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (samples, TOKENS))


def causal_batches() -> list[Any]:
    batches = [{"input_ids": tokens(n), "attention_mask": torch.ones(n, TOKENS, dtype=torch.long)} for n in (3, 2)]
    batches[0]["attention_mask"][0, -3:] = 0
    return batches


def image_batches(size: int) -> list[Any]:
    return [{"pixel_values": torch.randn(n, 3, size, size), "labels": torch.arange(n) % CLASSES} for n in (3, 2)]


@pytest.fixture(params=sorted(MODELS))
def job(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, list[Any]]:
    torch.manual_seed(0)
    model, loss, data = MODELS[request.param]()
    return model.eval(), loss, data


def plain_products(model: nn.Module, loss: Any, data: list[Any], vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    """H_bb v of every parameter in float64, with PyTorch alone."""
    double = copy.deepcopy(model).double()
    parameters = dict(double.named_parameters())
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for batch in data:
            widened = map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
            summed, count = loss(double, widened)
            total, weight = total + summed, weight + float(count)
        gradients = dict(
            zip(parameters, torch.autograd.grad(total / weight, list(parameters.values()), create_graph=True,
                                                allow_unused=True), strict=True)
        )  # fmt: skip
        products = {}
        for name, vector in vectors.items():
            gradient, parameter = gradients[name], parameters[name]
            (product,) = torch.autograd.grad(
                gradient, parameter, vector.double().reshape(parameter.shape), retain_graph=True, allow_unused=True
            )
            products[name] = torch.zeros(parameter.numel()).double() if product is None else product.reshape(-1)
    return products


def test_the_doctor_finds_nothing(job: tuple[nn.Module, Any, list[Any]]) -> None:
    model, loss, data = job
    report = he.doctor(model, loss, "module", data=data)
    assert report.ok, str(report)
    assert not [finding for finding in report.findings if finding.code != "tied-parameter"]
    assert all(check.curvature for check in report.blocks)
    assert [cost.microbatch for cost in report.costs] == [1, 2, 3]


def test_products_are_those_of_plain_pytorch_in_float64(job: tuple[nn.Module, Any, list[Any]]) -> None:
    model, loss, data = job
    generator = torch.Generator().manual_seed(1)
    operator = he.HessianOperator(model, loss, "parameter", data=data)
    vectors = {name: torch.randn(1, size, generator=generator) for name, size in operator.numel.items()}
    found = operator.matmat(vectors)
    wanted = plain_products(model, loss, data, vectors)
    largest = max(float(product.norm()) / float(vectors[name].norm()) for name, product in wanted.items())
    for name, product in wanted.items():
        scale = max(float(product.norm()), 1e-3 * largest * float(vectors[name].norm()))
        error = float((found[name][0].double() - product).norm())
        assert error <= 1e-5 * scale, f"{name}: {error / scale:.1e}"


def test_the_fused_operations_are_used() -> None:
    torch.manual_seed(0)
    expected = {
        "gpt2": {"attention", "cross_entropy", "embedding", "layer_norm"},
        "llama": {"attention", "cross_entropy", "embedding", "silu"},
        "bert": {"attention", "cross_entropy", "embedding", "gelu", "layer_norm"},
        "vit": {"attention", "cross_entropy", "gelu", "layer_norm"},
        "encoder": {"attention", "cross_entropy", "embedding", "layer_norm"},
    }
    for name, operations in expected.items():
        model, loss, data = MODELS[name]()
        operator = he.HessianOperator(model.eval(), loss, data=data)
        assert operations <= set(operator.objective.fused.replaced), name
