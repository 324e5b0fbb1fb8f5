"""What models of the hub do that PyTorch's own layers do not: mixtures of experts, masks of rows that see nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from planned import counted
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import hvp_engine as he
from hvp_engine.errors import ObjectiveError
from hvp_engine.operators.registry import operator_named

SIZES = {
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "initializer_range": 0.1,
}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    value: Tensor = model(**batch).loss
    return value


def tokens() -> Tensor:
    return torch.randint(2, 17, (3, 7), generator=torch.Generator().manual_seed(0))


def vectors(model: nn.Module) -> Tensor:
    return torch.randn(2, sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(1))


def plain_products(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Products of the Hessian by PyTorch alone, in the model's dtype."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(model, batch), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(flat @ v.to(flat.dtype), parameters, retain_graph=True) for v in vectors(model)]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]).double()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture
def mixture() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)).eval()
    return model, {"input_ids": tokens(), "labels": tokens()}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp64", 1e-6), ("bf16", 3e-2)])
def test_a_mixture_of_experts_is_multiplied_in_every_precision(
    mixture: tuple[nn.Module, dict[str, Tensor]], precision: Any, tolerance: float
) -> None:
    model, batch = mixture
    twin = copy.deepcopy(model).double()
    if hasattr(twin, "set_experts_implementation"):
        twin.set_experts_implementation("eager")  # one expert after the other: any dtype
    found = he.hvp(model, loss, {"full": vectors(model)}, data=[batch], precision=precision)["full"]
    assert error(found, plain_products(twin, batch)) < tolerance


def test_a_mixture_of_experts_is_examined_counted_and_run(mixture: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, batch = mixture
    assert he.doctor(model, loss, data=[batch], seconds=1).ok
    he.slq(model, loss, data=[batch], steps=3, probes=1)
    if not hasattr(model, "set_experts_implementation"):  # older releases look which experts have tokens
        with pytest.raises(ObjectiveError, match="must not read values"):
            counted(model, loss, [batch])
        return
    found = counted(model, loss, [batch])
    pairs, hidden = 2 * tokens().numel(), SIZES["hidden_size"]  # every token goes to two experts
    assert found.forward.flop > 2 * pairs * hidden * 3 * SIZES["intermediate_size"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_on_the_left_is_the_same_job_in_float64_as_in_float32(attention: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(LlamaConfig(**SIZES), attn_implementation=attention).eval()
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, :3], mask[1, :1] = 0, 0
    batch = {"input_ids": tokens(), "attention_mask": mask, "labels": tokens().masked_fill(mask == 0, -100)}
    expected = plain_products(model, batch)
    for precision in ("fp32", "fp64"):
        found = he.hvp(model, loss, {"full": vectors(model)}, data=[batch], precision=precision)["full"]  # type: ignore[arg-type]
        assert error(found, expected) < 1e-5
    # Of rows without any token, whose last one predicts the first word, releases before 5 add the least number to the
    # scores: that leaves nothing of them, and autograd does not know it. Its derivatives are those of another function.
    sound = attention == "eager" or int(transformers.__version__.partition(".")[0]) >= 5
    assert he.doctor(model, loss, data=[batch], seconds=1).ok is sound
    he.slq(model, loss, data=[batch], steps=3, probes=1, precision="fp64", check=sound)


def test_a_models_own_loss_has_a_gauss_newton_matrix_and_with_an_auxiliary_loss_none(
    mixture: tuple[nn.Module, dict[str, Tensor]],
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    batch = {"input_ids": tokens(), "labels": tokens()}
    of = {
        name: operator_named(name)(model, loss, data=[batch], precision="fp64").matmat({"full": vectors(model)})["full"]
        for name in ("hessian", "ggn", "residual")
    }
    assert error(of["ggn"] + of["residual"], of["hessian"]) <= 1e-6  # the model computes its rotations in float32
    assert bool(((of["ggn"] * vectors(model)).sum(1) > 0).all())
    routed, batch = mixture
    with pytest.raises(ObjectiveError, match="also enters this one through .*an auxiliary loss of the model"):
        operator_named("ggn")(routed, lambda m, b: m(**b, output_router_logits=True).loss, data=[batch])
