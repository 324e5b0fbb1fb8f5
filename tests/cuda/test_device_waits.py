"""Products on an emulated CUDA device whose host waits for nothing: of every operator, with every kind of block."""

from __future__ import annotations

import os
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from device_process import on_device

import hvp_engine as he
from hvp_engine.operators.registry import OPERATORS

pytestmark = pytest.mark.usefixtures("emulated_device")

BLOCKS = {"tokens": ["wte.weight"], "positions": ["wpe.weight"], "layer": ["layers.0.attn.wq.weight"], "all": ["*"]}


def language_model():
    """A transformer with embeddings that are tied to its head, and one micro-batch."""
    from hvp_engine.experiments.models.gpt import GPT, GPTConfig

    torch.manual_seed(3)
    model = GPT(GPTConfig(vocabulary=7, context=3, layers=1, heads=2, width=4)).eval()
    tokens = torch.randint(0, 7, (2, 2, 3))
    tokens[1, 0, 0] = he.losses.IGNORE
    return model.to("cuda"), [tuple(tokens)]


def products(operator, vectors):
    """Two sweeps, the second of which must not wait."""
    operator.hold_steady()
    first = operator.sweep(vectors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = operator.sweep(vectors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return first, second


def check(kind, backend, counts, **options):
    from emulated_device import interpreted_triton

    model, data = language_model()
    triton = interpreted_triton() if backend == "triton" else nullcontext()
    with patch.dict(os.environ, HVP_ENGINE_BACKEND=backend), triton:
        operator = OPERATORS[kind](model, he.losses.causal_lm, BLOCKS, data=data, **options)
        for count in counts:
            vectors = {name: torch.randn(count, size, device="cuda") for name, size in operator.numel.items()}
            first, second = products(operator, vectors)
            for name, product in first.items():
                assert torch.equal(product.cpu(), second[name].cpu())


@pytest.mark.parametrize("kind", OPERATORS)
@on_device
def test_no_product_waits_with_plain_operations(kind):
    check(kind, "cuda", (1, 6))


@pytest.mark.parametrize("kind", ["hessian"])
@on_device
def test_no_product_waits_with_the_kernels_of_triton(kind):
    check(kind, "triton", (1,))


@on_device
def test_no_preconditioned_product_waits():
    check("hessian", "cuda", (1, 6), precondition={name: 2.0 for name, _ in language_model()[0].named_parameters()})
