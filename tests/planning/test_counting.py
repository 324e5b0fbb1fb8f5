"""Counts against formulas, and the sizes of graphs against what the engine keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from planned import BATCH, CONFIG, counted, small_gpt
from problems import Case
from torch import nn

import hvp_engine as he
from hvp_engine.blocks import resolve
from hvp_engine.kernels.attention import counts_of
from hvp_engine.kernels.records import AttentionSizes
from hvp_engine.operators.ggn import GaussNewtonOperator, ResidualOperator
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.planning.counting import JobCounter, data_shape
from hvp_engine.planning.shapes import NATIVE, Backends

KINDS = (he.HessianOperator, GaussNewtonOperator, ResidualOperator)


def test_products_of_an_mlp_are_those_of_the_formulas() -> None:
    n, d0, d1, d2 = 11, 7, 5, 3
    model = nn.Sequential(nn.Linear(d0, d1), nn.Tanh(), nn.Linear(d1, d2))
    data = [(torch.randn(n, d0), torch.randint(0, d2, (n,)))]
    found = counted(model, he.losses.classification, data, ["0.weight", "2.weight"])
    first, second = 2 * n * d0 * d1, 2 * n * d1 * d2
    assert found.forward.flop == first + second
    assert found.gradient.flop == first + 2 * second
    # Tangents go up from the block to the loss and back: twice every product on the way, and none below the block.
    assert found.blocks["2.weight"].flop == 2 * second
    assert found.blocks["0.weight"].flop == 2 * first + 2 * second


def test_products_of_a_transformer_are_those_of_the_formulas() -> None:
    model, data = small_gpt()
    found = counted(model, he.losses.causal_lm, data, {"full": ["*"], "last": ["layers.1.c_proj.weight"]})
    tokens, d, v = BATCH * CONFIG.context, CONFIG.width, CONFIG.vocabulary
    predicted = tokens - BATCH  # the last token of a sequence predicts none, so that the head never sees it
    head = 2 * predicted * v * d
    linear = 2 * tokens * CONFIG.layers * 12 * d * d + head
    seen = 0.5 * (1 + 64 / CONFIG.context)  # tiles of 64 x 64 on and below the diagonal
    product = CONFIG.layers * 2 * tokens * CONFIG.context * d * seen
    assert found.forward.flop == linear + 2 * product
    assert found.gradient.flop == 2 * linear + 5 * product
    # Six products per linear layer; twelve of attention's second backward and five of its backward along tangents.
    assert found.blocks["full"].flop == 6 * linear + (12 + 5) * product
    assert found.blocks["last"].flop == 2 * (2 * tokens * 4 * d * d + head)
    assert (found.head.tokens, found.head.hidden_size, found.head.classes) == (predicted, d, v)
    assert found.head.blocks == {"full"}


def test_gauss_newton_products_take_less_work_than_the_hessians_on_the_same_graphs() -> None:
    model, data = small_gpt()
    blocks = {"full": ["*"], "last": ["layers.1.c_proj.weight"], "first": ["layers.0.c_fc.weight"]}
    whole, ggn, rest = (counted(model, he.losses.causal_lm, data, blocks, operator=kind) for kind in KINDS)
    tokens, d, v = BATCH * CONFIG.context, CONFIG.width, CONFIG.vocabulary
    head = 2 * (tokens - BATCH) * v * d
    last = 2 * tokens * 4 * d * d
    for counts in (ggn, rest):
        assert (counts.forward, counts.gradient.flop) == (whole.forward, whole.gradient.flop)
        assert counts.graph_bytes == whole.graph_bytes
        assert counts.head == whole.head
    # Tangents up to the logits and products back. The rest stays below the head: the last normalisation bends.
    assert ggn.blocks["last"].flop == 2 * (last + head)
    assert rest.blocks["last"].flop == 2 * last
    # Between a block and the logits a Hessian product passes every linear layer as often; attention it passes more.
    assert 2 * last + 2 * head < ggn.blocks["first"].flop < 0.9 * whole.blocks["first"].flop
    assert ggn.blocks["full"].flop < 0.7 * whole.blocks["full"].flop


def test_bytes_are_those_of_inputs_and_outputs() -> None:
    n, d = 64, 48
    model = nn.Linear(d, d, bias=False)
    found = counted(model, lambda m, batch: m(batch).exp().sum(), [torch.randn(n, d)])
    # One product, one exponential, one sum.
    assert found.forward.bytes == 4 * ((n * d + d * d + n * d) + 2 * n * d + (n * d + 1))


def test_graphs_are_as_large_as_the_engine_measures_them(case: Case) -> None:
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    measured = operator.scheduler.plan.graph_bytes
    planned = he.plan(case.model, case.loss, data=case.data, device="a100-80gb").setting.graph_bytes
    assert measured / 1.25 < planned < measured * 1.25


def saved_bytes(operator: he.HessianOperator, batch: object) -> dict[torch.dtype, int]:
    """Bytes of the distinct storages that the engine's gradient graph of a batch keeps, by dtype."""
    own = {p.untyped_storage().data_ptr() for p in operator.objective.model.parameters()}
    found: dict[int, tuple[torch.dtype, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (tensor.dtype, storage.nbytes())
        return tensor

    with operator.objective.arithmetic(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total, weight = operator.objective.evaluate(batch)
        graph = GradientGraph(total, weight, dict(operator.objective.model.named_parameters()))
    sizes: dict[torch.dtype, int] = {}
    for dtype, size in found.values():
        sizes[dtype] = sizes.get(dtype, 0) + size
    del graph
    return sizes


class OtherLayers(nn.Module):
    """What the GPT lacks: RMS normalisation, SiLU, a softmax and attention of plain products, a head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.back = nn.RMSNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 96)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.back(F.silu(self.query(self.norm(hidden))))
        weights = torch.softmax(update @ hidden.transpose(-2, -1), -1)
        return self.head(hidden + weights @ update)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt", "other layers"])
def test_graph_bytes_are_those_of_the_tensors_that_the_engine_saves(name: str, precision: str) -> None:
    if name == "gpt":
        model, (batch, _) = small_gpt()
        loss = he.losses.causal_lm
    else:
        torch.manual_seed(0)
        model, batch = OtherLayers(), (torch.randn(2, 50, 24), torch.randint(0, 96, (2, 50)))
        loss = he.losses.classification
    operator = he.HessianOperator(model, loss, data=[batch], precision=precision)
    sizes = saved_bytes(operator, next(iter(operator.objective.batches()))[1])
    shape = data_shape([batch], operator.dtype)
    planned = JobCounter(model, loss, shape, resolve(model, None), precision).graph_bytes(len(batch))
    # Within half a percent: the engine also keeps a number or two per row of a loss.
    assert planned == pytest.approx(sum(sizes.values()), rel=0.005)
    if precision == "bf16":  # or the test would not tell bf16 from fp32
        assert sizes[torch.bfloat16] > sizes[torch.float32]


def test_traffic_of_bf16_products_is_half_and_that_of_their_casts_is_counted() -> None:
    n, d = 64, 48
    model, data = nn.Linear(d, d, bias=False), [torch.randn(n, d)]
    partition, shape = resolve(model, None), data_shape(data, torch.float32)
    found = JobCounter(model, lambda m, b: m(b).sum(), shape, partition, "bf16").count(None)
    matrices = n * d + d * d
    assert found.forward.bytes == (4 + 2) * matrices + 2 * (matrices + n * d) + 2 * (n * d + 1)


def penalty(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().mean()


def slopes(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(torch.func.grad(lambda point: model(point).sum()))(x).square().mean()


@pytest.mark.parametrize("loss", [penalty, slopes])
def test_losses_that_differentiate_inside_are_counted_as_the_passes_they_take(loss: object) -> None:
    n, d = 8, 16
    model = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.LayerNorm(d), nn.Linear(d, d))
    found = counted(model, loss, [torch.randn(n, d)], ["0.weight"])
    layer = 2 * n * d * d
    assert found.forward.flop >= 4 * layer  # two layers, forward and to the input
    assert found.gradient.flop >= 3 * layer
    assert found.blocks["0.weight"].flop >= 4 * layer
    assert found.graph_bytes > n * d * 4


def test_attention_without_kernels_is_counted_with_its_matrices() -> None:
    model, data = small_gpt()
    shape, partition = data_shape(data, torch.float32), resolve(model, {"last": ["layers.1.c_proj.weight"]})
    tiles, plain = (
        JobCounter(model, he.losses.causal_lm, shape, partition, backends=backends).count(BATCH)
        for backends in (NATIVE, Backends(None, others=True))
    )
    scores = 4 * CONFIG.layers * BATCH * CONFIG.heads * CONFIG.context**2
    assert plain.graph_bytes > tiles.graph_bytes + 0.95 * scores  # the probabilities, in place of numbers by rows
    assert plain.forward.bytes > tiles.forward.bytes + 4 * scores


def test_kernels_that_form_more_products_are_counted_with_them() -> None:
    model, data = small_gpt()
    shape, partition = data_shape(data, torch.float32), resolve(model, {"full": ["*"]})
    native, triton = (
        JobCounter(model, he.losses.causal_lm, shape, partition, "bf16", backends=Backends(name, others=True)).count(
            BATCH
        )
        for name in ("native", "triton")
    )
    sizes = AttentionSizes(torch.bfloat16, BATCH, CONFIG.heads, CONFIG.heads, CONFIG.context, CONFIG.context, 64, 64)
    more = [
        counts_of("triton").backward((True,) * 3, sizes).products - 5,
        counts_of("triton").second((True,) * 3, (True,) * 4, sizes).products - 12,
    ]
    assert all(count > 0 for count in more)
    seen = 0.5 * (1 + 64 / CONFIG.context)
    product = CONFIG.layers * 2 * BATCH * CONFIG.context**2 * CONFIG.width * seen
    assert triton.gradient.flop - native.gradient.flop == more[0] * product
    assert triton.blocks["full"].flop - native.blocks["full"].flop == sum(more) * product
