"""Hessian-vector products against dense float64 Hessians."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import Case, cnn, dense_hessian, gpt, mlp
from torch import nn
from torch.autograd.function import once_differentiable

import hvp_engine as he
from hvp_engine.errors import NonDeterministicError, SecondDerivativeError

TOLERANCE = {"fp32": 1e-5, "fp64": 1e-12}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def offsets(model: nn.Module) -> dict[str, slice]:
    position, found = 0, {}
    for name, parameter in model.named_parameters():
        found[name] = slice(position, position + parameter.numel())
        position += parameter.numel()
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("microbatch", [None, 2])
def test_full_and_per_tensor_products_match_the_dense_hessian(
    case: Case, precision: str, microbatch: int | None
) -> None:
    hessian = dense_hessian(case)
    where = offsets(case.model)
    blocks = {"all of it": ["*"], **{name: [name] for name in where}}
    operator = he.HessianOperator(
        case.model, case.loss, blocks, data=case.data, precision=precision, microbatch=microbatch
    )
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(3, n, generator=generator, dtype=torch.float64) for name, n in operator.numel.items()}
    products = operator.matmat(vectors)
    scale = float(torch.linalg.matrix_norm(hessian, 2))
    for name, found in products.items():
        part = where.get(name, slice(None))
        wanted = vectors[name] @ hessian[part, part]
        # A block whose curvature vanishes in exact arithmetic has only rounding to be relative to.
        floor = TOLERANCE[precision] * scale * float(vectors[name].norm())
        error = float((found.double() - wanted).norm())
        assert error <= max(TOLERANCE[precision] * float(wanted.norm()), 1e-3 * floor), name


def test_single_vector_and_many_vectors_agree(case: Case) -> None:
    operator = he.HessianOperator(case.model, case.loss, "parameter", data=case.data, precision="fp64")
    vectors = {name: torch.randn(4, n, dtype=torch.float64) for name, n in operator.numel.items()}
    operator.scheduler.plan.streams_per_pass = 4
    together = operator.matmat(vectors)
    operator.scheduler.plan.streams_per_pass = 1
    alone = operator.matmat(vectors)
    for name in vectors:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-10, atol=1e-12)


def test_slices_of_tensors_are_blocks() -> None:
    case = gpt()
    weight = "layers.0.attn.wq.weight"
    hessian = dense_hessian(case, [weight]).reshape(8, 8, 8, 8)
    chosen = torch.tensor([6, 0, 3])
    blocks = [
        he.Block("rows", [(weight, slice(2, 6))]),
        he.Block("corner", [(weight, (slice(0, 4, 2), slice(1, 5)))]),
        he.Block("picked", [(weight, chosen)]),
        he.Block("two pieces", [(weight, slice(0, 1)), (weight, slice(5, 7))]),
    ]
    dense = {
        "rows": hessian[2:6, :, 2:6, :].reshape(32, 32),
        "corner": hessian[0:4:2, 1:5, 0:4:2, 1:5].reshape(8, 8),
        "picked": hessian[chosen][:, :, chosen].reshape(24, 24),
        "two pieces": hessian[[0, 5, 6]][:, :, [0, 5, 6]].reshape(24, 24),
    }
    for streams in (1, 3):
        operator = he.HessianOperator(case.model, case.loss, blocks, data=case.data, precision="fp64")
        operator.scheduler.plan.streams_per_pass = streams
        vectors = {name: torch.randn(3, n, dtype=torch.float64) for name, n in operator.numel.items()}
        for name, found in operator.matmat(vectors).items():
            assert relative(found, vectors[name] @ dense[name]) <= 1e-12, name


def test_heads_and_rows_cover_their_tensors() -> None:
    case = gpt()
    weight = "layers.1.attn.wo.weight"
    hessian = dense_hessian(case, [weight]).reshape(8, 8, 8, 8)
    blocks = he.blocks.heads(case.model, "layers.1.attn.wo.weight", 2, dim=1) + he.blocks.rows(case.model, [weight])
    operator = he.HessianOperator(case.model, case.loss, blocks, data=case.data, precision="fp64")
    vectors = {name: torch.randn(1, n, dtype=torch.float64) for name, n in operator.numel.items()}
    products = operator.matmat(vectors)
    head = hessian[:, 4:, :, 4:].reshape(32, 32)
    assert relative(products[f"{weight}/head1"], vectors[f"{weight}/head1"] @ head) <= 1e-12
    row = hessian[5, :, 5, :]
    assert relative(products[f"{weight}/row5"], vectors[f"{weight}/row5"] @ row) <= 1e-12


def test_hvp_function_returns_products_of_the_given_blocks_only() -> None:
    case = mlp()
    vectors = {"0.weight": torch.randn(2, 35)}
    found = he.hvp(case.model, case.loss, vectors, "parameter", data=case.data)
    assert list(found) == ["0.weight"]
    assert found["0.weight"].dtype == torch.float32
    wanted = vectors["0.weight"].double() @ dense_hessian(case, ["0.weight"])
    assert relative(found["0.weight"], wanted) <= 1e-5


class Scaled(nn.Module):
    """A scalar parameter (a temperature, a gate) beside a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scale * x * self.weight).tanh().sum()


@pytest.mark.parametrize("count", [1, 3])
def test_scalar_parameters_are_blocks_of_one(count: int) -> None:
    x = torch.tensor([0.5, -1.0, 2.0])
    model = Scaled()

    (slope,) = torch.autograd.grad(model(x), model.scale, create_graph=True)
    (wanted,) = torch.autograd.grad(slope, model.scale)
    blocks: dict[str, list[str]] = {"scale": ["scale"], "both": ["*"]}
    vectors = {name: torch.ones(count, size) for name, size in (("scale", 1), ("both", 4))}
    products = he.hvp(model, lambda m, b: m(b), vectors, blocks, data=[x])
    torch.testing.assert_close(products["scale"], wanted.expand(count, 1))
    assert products["both"].shape == (count, 4)
    spectra = he.slq(model, lambda m, b: m(b), blocks, data=[x], steps=9, probes=2)
    assert abs(spectra["scale"].trace().value - float(wanted)) < 1e-6


def test_a_callers_inference_mode_does_not_matter() -> None:
    case = mlp()
    size = sum(p.numel() for p in case.model.parameters())
    wanted = he.hvp(case.model, case.loss, {"full": torch.ones(2, size)}, data=case.data)["full"]
    trace = he.slq(case.model, case.loss, data=case.data, steps=3, probes=1)["full"].trace().value
    with torch.inference_mode():
        found = he.hvp(case.model, case.loss, {"full": torch.ones(2, size)}, data=case.data)["full"]
        assert he.slq(case.model, case.loss, data=case.data, steps=3, probes=1)["full"].trace().value == trace
        assert he.doctor(case.model, case.loss, data=case.data, seconds=1.0).ok
    assert torch.equal(found, wanted)


def test_backward_passes_that_fail_are_explained() -> None:
    case = mlp()
    size = sum(p.numel() for p in case.model.parameters())
    vectors = {"full": torch.ones(1, size)}

    def careless(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        squares = model(batch[0]).exp()
        squares.mul_(2.0)  # exp needs its result for the backward pass
        return squares.mean()

    with pytest.raises(SecondDerivativeError, match="in place"):
        he.hvp(case.model, careless, vectors, data=case.data)
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    operator.matmat(vectors)
    case.data[0][0].add_(1.0)
    with pytest.raises(NonDeterministicError, match="Batch 0 was overwritten"):
        operator.matmat(vectors)


def test_functions_that_are_once_differentiable_are_refused_not_left_out() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 3 * ctx.saved_tensors[0] ** 2

    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    operator_of = {
        "above": lambda m, b: Cube.apply(m(b)).tanh().sum(),
        "below": lambda m, b: m(Cube.apply(b)).tanh().sum(),
    }
    with pytest.raises(SecondDerivativeError, match="once_differentiable"):
        he.hvp(model, operator_of["above"], {"full": torch.ones(1, 8)}, data=[x])
    assert he.hvp(model, operator_of["below"], {"full": torch.ones(1, 8)}, data=[x])["full"].norm() > 0


def test_loss_without_data() -> None:
    case = mlp()
    inputs, targets = case.data[0]
    single = Case(case.model, case.loss, case.data[:1])
    vector = torch.randn(1, 35)
    found = he.hvp(case.model, lambda m: F.cross_entropy(m(inputs), targets), {"0.weight": vector}, "parameter")
    assert relative(found["0.weight"], vector.double() @ dense_hessian(single, ["0.weight"])) <= 1e-5


def test_dictionary_batches_and_huggingface_style_outputs() -> None:
    case = gpt()

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Output:
            return Output(self.inner(input_ids))

    tokens = torch.randint(0, 13, (3, 6))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    targets = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, he.losses.IGNORE)
    aligned = Case(case.model, lambda m, b: he.losses._summed(m(b[0])[:, :-1], b[1]), [(tokens, targets)])
    name = "layers.0.c_fc.weight"
    vector = torch.randn(1, 256, dtype=torch.float64)
    wanted = vector @ dense_hessian(aligned, [name])
    data = [{"input_ids": tokens, "attention_mask": mask}]
    model = Wrapped(case.model)
    found = he.hvp(model, he.losses.causal_lm, {f"inner.{name}": vector}, "parameter", data=data, precision="fp64")
    assert relative(found[f"inner.{name}"], wanted) <= 1e-12


def test_masked_lm_counts_only_labelled_tokens() -> None:
    case = gpt()
    total, weight = he.losses.masked_lm(case.model, {"tokens": case.data[0][0], "labels": case.data[0][1]})
    assert int(weight) == int((case.data[0][1] != -100).sum())
    logits = case.model(case.data[0][0])
    wanted = F.cross_entropy(logits.reshape(-1, 13), case.data[0][1].reshape(-1)) * weight
    torch.testing.assert_close(total, wanted)


def test_parameters_that_change_between_products_are_noticed() -> None:
    case = mlp()
    operator = he.HessianOperator(case.model, case.loss, ["0.weight"], data=case.data)
    vector = {"0.weight": torch.randn(1, 35)}
    before = operator.matmat(vector)["0.weight"]
    with torch.no_grad():
        case.model[2].weight.mul_(1.5)
    after = operator.matmat(vector)["0.weight"]
    assert not torch.allclose(before, after)
    assert relative(after, vector["0.weight"].double() @ dense_hessian(case, ["0.weight"])) <= 1e-5


def test_a_module_that_is_replaced_between_products_is_noticed() -> None:
    case = mlp()
    operator = he.HessianOperator(case.model, case.loss, ["4.weight"], data=case.data)
    vector = {"4.weight": torch.randn(1, 18)}
    operator.matmat(vector)
    case.model[4] = nn.Linear(6, 3)
    found = operator.matmat(vector)["4.weight"]
    assert relative(found, vector["4.weight"].double() @ dense_hessian(case, ["4.weight"])) <= 1e-5


def test_model_and_random_state_are_left_alone() -> None:
    case = cnn()
    before = copy.deepcopy(case.model.state_dict())
    state = torch.random.get_rng_state()
    he.slq(case.model, case.loss, data=case.data, steps=3, probes=1)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_bf16_products_are_close() -> None:
    case = gpt()
    name = "layers.0.c_proj.weight"
    vector = torch.randn(1, 256)
    found = he.hvp(case.model, case.loss, {name: vector}, "parameter", data=case.data, precision="bf16")[name]
    error = relative(found, vector.double() @ dense_hessian(case, [name]))
    assert 1e-5 < error < 3e-2  # bf16 really is in use, and is not wrong


def test_tf32_on_a_cpu_is_float32() -> None:
    case = mlp()
    vector = {"full": torch.randn(1, 111)}
    runs = [he.hvp(case.model, case.loss, vector, data=case.data, precision=p)["full"] for p in ("fp32", "tf32")]
    assert torch.equal(runs[0], runs[1])
