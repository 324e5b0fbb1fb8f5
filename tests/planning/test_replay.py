"""Passes gone through node by node count what running them counts, and run each kind of node once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from planned import BATCH, counted, small_gpt
from torch import nn
from torch.utils.checkpoint import checkpoint

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.operators.ggn import GaussNewtonOperator, ResidualOperator
from hvp_engine.planning import counting
from hvp_engine.planning.counting import Counts
from hvp_engine.planning.replay import Replay
from hvp_engine.planning.shapes import ShapesOnly


class Cube(torch.autograd.Function):
    """A function of the user's, of which nothing is known."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Residual(nn.Module):
    """Layers with sums of branches, expanded and sliced tensors, and a function of the user's."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(3)])
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(12, 5)
        self.checkpointed = checkpointed

    def branch(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return Cube.apply(torch.tanh(layer(hidden))) * self.scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            more = (
                checkpoint(self.branch, layer, hidden, use_reentrant=False)
                if self.checkpointed
                else self.branch(layer, hidden)
            )
            hidden = hidden + more + hidden.mean(0).expand_as(hidden) * hidden[..., :1]
        return self.head(hidden)


def residual(checkpointed: bool = False) -> tuple[nn.Module, Any, list[Any]]:
    return Residual(checkpointed), he.losses.classification, [(torch.randn(7, 12), torch.randint(0, 5, (7,)))]


def convolutional() -> tuple[nn.Module, Any, list[Any]]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    return model, he.losses.classification, [(torch.randn(5, 2, 8, 8), torch.randint(0, 3, (5,)))]


def transformer() -> tuple[nn.Module, Any, list[Any]]:
    model, data = small_gpt()
    return model, he.losses.causal_lm, data


def run(monkeypatch: pytest.MonkeyPatch, *asked: Any, **options: Any) -> Counts:
    """Count by running every pass."""
    with monkeypatch.context() as patch:
        patch.setattr(counting, "ReplayedPasses", ShapesOnly)
        return counted(*asked, **options)


CASES = {"transformer": transformer, "residual": residual, "convolutional": convolutional}


@pytest.mark.parametrize("blocks", ["parameter", None], ids=["tensors", "whole"])
@pytest.mark.parametrize("name", list(CASES))
def test_passes_gone_through_count_as_passes_run(
    name: str, blocks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, loss, data = CASES[name]()
    wanted = run(monkeypatch, model, loss, data, blocks)
    calls = counted_runs(monkeypatch)
    found = counted(model, loss, data, blocks)
    assert calls, "the passes were run, not gone through"
    for block, work in wanted.blocks.items():
        assert found.blocks[block].operations == work.operations, block
        assert found.blocks[block].peak == work.peak, block


@pytest.mark.parametrize("kind", [GaussNewtonOperator, ResidualOperator])
def test_other_matrices_are_counted_as_their_passes_run(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, data = transformer()
    blocks = {"first": ["layers.0.attn.wq.weight"], "full": ["*"]}
    wanted = run(monkeypatch, model, loss, data, blocks, operator=kind)
    found = counted(model, loss, data, blocks, operator=kind)
    assert all(found.blocks[block].operations == work.operations for block, work in wanted.blocks.items())


def test_a_model_that_recomputes_in_its_backward_pass_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, data = residual(checkpointed=True)
    wanted = run(monkeypatch, model, loss, data, "parameter")
    found = counted(model, loss, data, "parameter")
    assert all(found.blocks[block].operations == work.operations for block, work in wanted.blocks.items())
    plain = counted(*residual(), "parameter")
    assert found.blocks["layers.0.weight"].flop > plain.blocks["layers.0.weight"].flop  # or nothing was recomputed


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every node that autograd runs for a count."""
    calls: list[str] = []
    original = Replay._run

    def noted(self: Replay, key: Any, known: Any, given: Any, wanted: Any) -> Any:
        calls.append(type(known.node).__name__)
        return original(self, key, known, given, wanted)

    monkeypatch.setattr(Replay, "_run", noted)
    return calls


def test_more_layers_and_blocks_take_no_more_runs_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted_runs(monkeypatch)
    runs: list[int] = []
    for layers in (3, 8):
        config = GPTConfig(vocabulary=512, context=16, layers=layers, heads=2, width=32)
        with torch.device("meta"):
            model, data = GPT(config).eval(), [torch.zeros(BATCH, 16, dtype=torch.int64)]
        calls.clear()
        found = counted(model, he.losses.causal_lm, data, "parameter")
        assert len(found.blocks) > 8 * layers
        runs.append(len(calls))
    assert 0 < runs[0] == runs[1]


def test_a_tensor_that_nothing_of_the_second_derivative_reaches_costs_nothing() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return (F.softplus(batch * self.weight) + self.bias).sum()

    found = counted(Linear(), lambda m, b: m(b), [torch.randn(3, 4)], "parameter")
    assert found.blocks["bias"].bytes == 0 < found.blocks["weight"].bytes
