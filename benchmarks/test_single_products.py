"""What one product costs: the first and the next `he.hvp`, and a kept operator, against plain PyTorch.

Run with `pytest -s benchmarks/test_single_products.py`; ratios of medians timed alternately, kept in `extra_info`. The
plain way is a forward pass, a gradient with its graph and a second gradient; on a kept graph it is the last alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timing import alternate
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig

Problem = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], list[Any]]
THREADS = 2


def classification(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, which `he.losses` would declare known."""
    return F.cross_entropy(model(batch[0]), batch[1])


def next_token(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy of tokens (sequences, length)."""
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def mlp(*sizes: int, samples: int) -> Problem:
    """Return a network of linear layers and tanh."""
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    data = [(torch.randn(samples, sizes[0]), torch.randint(0, sizes[-1], (samples,)))]
    return nn.Sequential(*layers[:-1]), classification, data


def cnn() -> Problem:
    """Return a convolutional network of 10,000 parameters."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    return model, classification, [(torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,)))]


def gpt(sequences: int, **sizes: int) -> Problem:
    """Return a GPT and one batch of whole sequences."""
    config = GPTConfig(**sizes)
    return GPT(config).eval(), next_token, [torch.randint(0, config.vocabulary, (sequences, config.context))]


PROBLEMS: dict[str, tuple[int, Callable[[], Problem]]] = {  # rounds, and what is multiplied
    "mlp 2k": (40, lambda: mlp(20, 40, 20, 10, samples=64)),
    "mlp 670k": (20, lambda: mlp(784, 512, 512, 10, samples=128)),
    "cnn 10k": (20, cnn),
    "gpt 200k": (10, lambda: gpt(2, vocabulary=256, context=64, layers=4, heads=4, width=64)),
    "gpt 10M": (3, lambda: gpt(4, vocabulary=8192, context=256, layers=6, heads=6, width=336)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_product(benchmark: Any, name: str) -> None:
    """The first product of a new model, loss and data; those after it; and products of an operator that is kept."""
    torch.set_num_threads(THREADS)
    rounds, make = PROBLEMS[name]
    torch.manual_seed(0)
    model, loss, data = make()
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    vector = torch.randn(sum(sizes))
    parts = [part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)]

    def gradients() -> tuple[Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(loss(model, data[0]), parameters, create_graph=True)

    def second(given: tuple[Tensor, ...]) -> Tensor:
        found = torch.autograd.grad(given, parameters, parts, retain_graph=True)
        return torch.cat([product.reshape(-1) for product in found])

    operator, kept = he.HessianOperator(model, loss, data=data), gradients()
    expected = second(kept)
    assert float((operator @ vector - expected).norm() / expected.norm()) < 1e-4
    times = alternate(
        {
            "plain": lambda: second(gradients()),
            "hvp": lambda: he.hvp(model, loss, {"full": vector[None]}, data=data),
            "built": lambda: he.HessianOperator(model, loss, data=data) @ vector,
            "plain_kept": lambda: second(kept),
            "operator": lambda: operator @ vector,
        },
        rounds,
    )
    benchmark.extra_info.update({f"{way}_ms": round(1e3 * value, 2) for way, value in times.items()})
    benchmark.extra_info.update(
        hvp_to_plain=round(times["hvp"] / times["plain"], 2),
        operator_and_product_to_plain=round(times["built"] / times["plain"], 2),
        product_to_plain=round(times["operator"] / times["plain"], 2),
        product_to_plain_kept=round(times["operator"] / times["plain_kept"], 2),
    )
    print(f"\n{name}: {benchmark.extra_info}")
    benchmark.pedantic(operator.__matmul__, (vector,), rounds=1)
