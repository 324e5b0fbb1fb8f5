"""The papers' blocks of the models that people have, whatever their modules are called."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.blocks import paper, resolve
from hvp_engine.errors import BlockError
from hvp_engine.experiments.models.gpt import GPT, GPTConfig

WIDTH, VOCABULARY = 8, 11
LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 2}
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 12, "num_key_value_heads": 1,
    "max_position_embeddings": 8, **LAYERS,
}  # fmt: skip
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 12, "max_position_embeddings": 10, **LAYERS,
}  # fmt: skip
IMAGES = {"hidden_size": WIDTH, "intermediate_size": 16, "image_size": 4, "patch_size": 2, "num_labels": 3}


def meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def sizes(model: nn.Module, **options: Any) -> dict[str, int]:
    return dict(resolve(model, paper(model, **options)).numel)


def of_layers(layers: tuple[int, ...], *names: str) -> list[str]:
    return [f"{layer}.{name}" for layer, name in product(layers, names)]


def test_gpt2_has_the_papers_25_blocks() -> None:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=WIDTH, n_layer=12, n_head=2)
    model = meta(lambda: transformers.GPT2LMHeadModel(config))
    found = sizes(model)
    assert list(found) == [
        "wte", *of_layers((0, 3, 7, 11), "wq", "wk", "wv", "wo", "c_fc", "c_proj")
    ]  # fmt: skip
    assert list(found.values()) == [VOCABULARY * WIDTH, *([WIDTH**2] * 4 + [4 * WIDTH**2] * 2) * 4]
    fused = "transformer.h.3.attn.c_attn.weight"
    for place, name in enumerate(("wq", "wk", "wv")):
        columns = slice(place * WIDTH, (place + 1) * WIDTH)
        assert paper(model)[f"3.{name}"].parts == [(fused, (slice(None), columns))]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Gemma"])
@pytest.mark.parametrize("tied", [True, False])
def test_models_of_llamas_kind_have_a_gate_and_a_head_where_it_is_their_own(family: str, tied: bool) -> None:
    more = {"head_dim": 6} if family == "Gemma" else {}
    config = getattr(transformers, f"{family}Config")(**LLAMA, **more, tie_word_embeddings=tied)
    model = meta(lambda: getattr(transformers, f"{family}ForCausalLM")(config))
    found = sizes(model)
    names = of_layers((0, 1, 2, 3), "wq", "wk", "wv", "wo", "gate", "up", "down")
    assert list(found) == ["wte", *names, *([] if tied else ["head"])]
    head = 6 if family == "Gemma" else 4
    layer = [2 * head * WIDTH, head * WIDTH, head * WIDTH, 2 * head * WIDTH, 12 * WIDTH, 12 * WIDTH, 12 * WIDTH]
    assert list(found.values())[:29] == [VOCABULARY * WIDTH, *layer * 4]
    assert [paper(model)["2.gate"].parts, paper(model)["2.up"].parts] == [
        [("model.layers.2.mlp.gate_proj.weight", None)], [("model.layers.2.mlp.up_proj.weight", None)]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("BertForMaskedLM", ["transform"]),
        ("BertForPreTraining", ["transform"]),
        ("BertForSequenceClassification", ["head"]),
        ("BertModel", []),
        ("RobertaForMaskedLM", ["transform"]),
        ("RobertaForSequenceClassification", ["head"]),
    ],
)
def test_berts_have_an_embedding_six_weights_a_layer_and_what_predicts(name: str, more: list[str]) -> None:
    config = getattr(transformers, "BertConfig" if name.startswith("Bert") else "RobertaConfig")(**BERT, num_labels=3)
    found = sizes(meta(lambda: getattr(transformers, name)(config)))
    layers = of_layers((0, 1, 2, 3), "query", "key", "value", "output", "fc1", "fc2")
    assert list(found) == ["embedding", *layers, *more]
    ends = {"transform": WIDTH**2, "head": 3 * WIDTH}
    layer = [WIDTH**2] * 4 + [12 * WIDTH] * 2
    assert list(found.values()) == [VOCABULARY * WIDTH, *layer * 4, *(ends[name] for name in more)]


def test_a_decoder_of_masked_tokens_that_is_not_tied_is_a_block() -> None:
    config = transformers.BertConfig(**BERT, tie_word_embeddings=False)
    found = sizes(meta(lambda: transformers.BertForMaskedLM(config)))
    assert list(found)[-2:] == ["transform", "head"] and found["head"] == VOCABULARY * WIDTH


@pytest.mark.parametrize("family", ["ViT", "Dinov2"])
def test_vision_transformers_have_the_papers_14_blocks(family: str) -> None:
    given = {**IMAGES, "num_hidden_layers": 12, "num_attention_heads": 2, "mlp_ratio": 2}
    config = getattr(transformers, f"{family}Config")(**given)
    found = sizes(meta(lambda: getattr(transformers, f"{family}ForImageClassification")(config)))
    assert list(found) == ["patch_embed", *of_layers((0, 6, 11), "qkv", "proj", "fc1", "fc2"), "head"]
    features = WIDTH if family == "ViT" else 2 * WIDTH
    layer = [3 * WIDTH**2, WIDTH**2, 16 * WIDTH, 16 * WIDTH]
    assert list(found.values()) == [3 * 4 * WIDTH, *layer * 3, 3 * features]


@pytest.mark.parametrize(("kind", "count"), [("basic", 21), ("bottleneck", 54)])
def test_resnets_have_their_convolutions_and_their_head_by_torchvisions_names(kind: str, count: int) -> None:
    depths = [2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3]
    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    config = transformers.ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=widths, num_labels=10)
    found = sizes(meta(lambda: transformers.ResNetForImageClassification(config)))
    own = meta(lambda: ResNet(depths, bottleneck=kind == "bottleneck"))
    expected = {name.replace("downsample.0", "downsample"): size for name, size in weights(own).items()}
    assert len(found) == count
    assert found == expected
    assert list(found)[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"] and list(found)[-1] == "fc"
    assert sizes(own) == found


def test_a_resnets_body_has_no_head() -> None:
    config = transformers.ResNetConfig(layer_type="basic", depths=[1, 1], hidden_sizes=[4, 8], embedding_size=4)
    assert list(sizes(meta(lambda: transformers.ResNetModel(config)))) == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample"
    ]  # fmt: skip


def test_the_experiments_gpt_has_the_papers_blocks_and_the_layers_that_are_asked_for() -> None:
    model = meta(lambda: GPT(GPTConfig(vocabulary=VOCABULARY, context=8, layers=12, heads=2, width=WIDTH)))
    projections = ("wq", "wk", "wv", "wo", "c_fc", "c_proj")
    assert list(sizes(model)) == ["wte", *of_layers((0, 3, 7, 11), *projections)]
    assert list(sizes(model, layers=(5, 2))) == ["wte", *of_layers((5, 2), *projections)]
    assert paper(model)["7.wo"].parts == [("layers.7.attn.wo.weight", None)]


def test_names_of_another_version_lead_to_the_same_blocks() -> None:
    model = OldViT()
    found = paper(model)
    assert list(found) == ["patch_embed", *of_layers((0, 1), "qkv", "proj", "fc1", "fc2"), "head"]
    layer = "vit.encoder.layer.1"
    assert found["1.qkv"].parts == [
        (f"{layer}.attention.attention.{name}.weight", None) for name in ("query", "key", "value")
    ]
    assert found["1.proj"].parts == [(f"{layer}.attention.output.dense.weight", None)]
    assert found["1.fc2"].parts == [(f"{layer}.output.dense.weight", None)]


def test_torchs_own_encoder_layers_are_cut_apart() -> None:
    model = Encoded()
    found = sizes(model)
    assert list(found) == ["wte", *of_layers((0, 1), "wq", "wk", "wv", "wo", "c_fc", "c_proj"), "head"]
    assert found["1.wk"] == WIDTH**2
    assert paper(model)["0.wv"].parts == [
        ("layers.layers.0.self_attn.in_proj_weight", slice(2 * WIDTH, 3 * WIDTH))
    ]  # fmt: skip


def test_the_mapping_goes_into_a_job_with_more_blocks_beside_it() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=4, n_embd=WIDTH, n_layer=1, n_head=2, initializer_range=0.5
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.arange(8).reshape(2, 4)
    chosen = {**paper(model), "norms": "*.ln_*", "full": "*"}
    assert list(resolve(model, chosen).blocks)[-2:] == ["norms", "full"]
    vector = torch.randn(1, WIDTH**2)
    products = he.hvp(model, he.losses.causal_lm, {"0.wk": vector}, chosen, data=[tokens])
    whole = he.dense(model, he.losses.causal_lm, ["transformer.h.0.attn.c_attn.weight"], data=[tokens])
    (matrix,) = whole.values()
    keys = torch.zeros(WIDTH, 3 * WIDTH, dtype=torch.bool)
    keys[:, WIDTH : 2 * WIDTH] = True
    expected = vector.double() @ matrix[keys.flatten()][:, keys.flatten()]
    largest = float(expected.abs().max())
    assert largest > 1e-3
    assert torch.allclose(products["0.wk"].double(), expected, atol=1e-4 * largest)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "no layers with attention"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2)), "no stages"),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
            ),
            "attends outside the list",
        ),
        (
            lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, num_local_experts=2)),
            "no MLP of two matrices",
        ),
        (lambda: nn.Sequential(NanoGPT()), "is not certain"),
        (lambda: nn.ModuleList([Encoded(), Encoded()]), "2 lists of like layers"),
    ],
)
def test_what_is_not_known_is_refused_with_a_reason_and_what_is_known(build: Callable[[], Any], reason: str) -> None:
    with pytest.raises(BlockError, match="papers' blocks of .* are not known") as refused:
        paper(meta(build))
    assert reason in str(refused.value)
    assert "GPT-2, Llama" in str(refused.value) and "ResNets" in str(refused.value)


def test_the_fixes_of_refusals_work() -> None:
    model = NanoGPT()
    assert len(resolve(model, "parameter").blocks) == 6
    cut = he.blocks.projections(model, "layers.0.attn.c_attn.weight", layout="stacked")
    assert [block.name.rpartition("/")[2] for block in cut] == ["q", "k", "v"]


@pytest.mark.parametrize("layers", [[4], [-1], [], [0, 0], "0", 1, [None]])
def test_layers_that_are_not_there_are_refused(layers: Any) -> None:
    model = meta(lambda: GPT(GPTConfig(vocabulary=VOCABULARY, context=8, layers=4, heads=2, width=WIDTH)))
    with pytest.raises(BlockError, match="numbers from 0 to 3"):
        paper(model, layers)


def test_a_resnet_has_no_layers_to_choose() -> None:
    with pytest.raises(BlockError, match="leave it out"):
        paper(meta(lambda: ResNet([1, 1], bottleneck=False)), [0])


def weights(model: nn.Module) -> dict[str, int]:
    return {
        name.removesuffix(".weight"): parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


class ResidualBlock(nn.Module):
    """A block with torchvision's names: basic, or a bottleneck."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, bias=False), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Torchvision's layout and names, without its forward pass."""

    def __init__(self, depths: list[int], bottleneck: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            outputs = width * (4 if bottleneck else 1)
            blocks = []
            for number in range(depth):
                blocks.append(ResidualBlock(channels, width, outputs, 2 if stage and not number else 1, bottleneck))
                channels = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 10)


def named(**modules: nn.Module) -> nn.Module:
    made = nn.Module()
    for name, module in modules.items():
        made.add_module(name, module)
    return made


class OldViT(nn.Module):
    """A ViT as transformers named its modules before version 5."""

    def __init__(self) -> None:
        super().__init__()
        linear = nn.Linear

        def layer() -> nn.Module:
            inner = named(query=linear(8, 8), key=linear(8, 8), value=linear(8, 8))
            return named(
                attention=named(attention=inner, output=named(dense=linear(8, 8))),
                intermediate=named(dense=linear(8, 12)),
                output=named(dense=linear(12, 8)),
                layernorm_before=nn.LayerNorm(8),
                layernorm_after=nn.LayerNorm(8),
            )

        patches = named(projection=nn.Conv2d(3, 8, 2, 2))
        self.vit = named(
            embeddings=named(patch_embeddings=patches),
            encoder=named(layer=nn.ModuleList([layer(), layer()])),
            layernorm=nn.LayerNorm(8),
            pooler=Pooler(),
        )
        self.classifier = linear(8, 3)


class Pooler(nn.Module):
    """What transformers puts behind a body."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)


class Encoded(nn.Module):
    """A language model of PyTorch's own layers, with a head of its own behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.layers(self.tokens(tokens))))
        return logits


class NanoGPT(nn.Module):
    """A model whose fused projections nothing tells the order of."""

    def __init__(self) -> None:
        super().__init__()

        def layer() -> nn.Module:
            attention = named(c_attn=nn.Linear(8, 24, bias=False), c_proj=nn.Linear(8, 8, bias=False))
            return named(attn=attention, c_fc=nn.Linear(8, 12, bias=False), c_proj=nn.Linear(12, 8, bias=False))

        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([layer()])
        self.ln_f = nn.LayerNorm(WIDTH, bias=False)
