"""A stage as gpu_stages.py has them, for test_compile_only.py: small, with every kernel that a transformer needs."""

from __future__ import annotations

import torch

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig


def run(emit, device, small):
    """Two products with blocks of a GPT, in the precisions of the card."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=97, context=32, layers=1, heads=2, width=32)).eval().to(device)
    data = [torch.randint(0, 97, (2, 32), device=device)]
    blocks = {"tokens": ["wte.weight"], "queries": ["layers.0.attn.wq.weight"]}
    vectors = {"tokens": torch.randn(1, 97 * 32, device=device), "queries": torch.randn(1, 32 * 32, device=device)}
    for precision in ("fp32", "bf16"):
        found = he.hvp(model, he.losses.causal_lm, vectors, blocks, data=data, precision=precision)
        emit(what=precision, blocks=sorted(found))
