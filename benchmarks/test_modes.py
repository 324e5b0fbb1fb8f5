"""Other orders of differentiation than the engine's reverse-over-reverse on a kept graph: do they ever win?

Forward-over-reverse (`torch.func.jvp` of `grad`), vmapped over probes, plain and compiled by inductor, for one block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jobs import gpt_job, mean_loss
from timing import alternate
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine as he

PROBES = 8


def mlp_job() -> tuple[nn.Module, Callable[..., Tensor], Any, str]:
    """An MLP, its loss, a batch, and the block."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))
    return (
        model,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        (torch.randn(256, 64), torch.randint(10, (256,))),
        "0.weight",
    )


def gpt(size: str) -> tuple[nn.Module, Callable[..., Tensor], Any, str]:
    """The same for a GPT of a named size."""
    job = gpt_job(size)
    return job.model, mean_loss, job.data[0], "layers.0.attn.wq.weight"


def forward_over_reverse(
    model: nn.Module, loss: Callable[..., Tensor], batch: Any, name: str
) -> Callable[[Tensor], Tensor]:
    """Products (K, ...) with one parameter's diagonal block."""
    fixed = {n: p.detach() for n, p in model.named_parameters()}

    class Shell:
        def __init__(self, parameter: Tensor) -> None:
            self.parameters = {**fixed, name: parameter}

        def __call__(self, *args: Any) -> Any:
            return functional_call(model, self.parameters, args)

    def one(tangent: Tensor) -> Tensor:
        return jvp(grad(lambda p: loss(Shell(p), batch)), (fixed[name],), (tangent,))[1]

    return vmap(one)


@pytest.mark.parametrize("model_name", ["mlp", "laptop", "medium"])
def test_modes_of_one_block(benchmark, model_name):
    """Times of PROBES products of the first block, relative to the engine's."""
    torch.set_num_threads(2)
    model, loss, batch, name = mlp_job() if model_name == "mlp" else gpt(model_name)
    shape = dict(model.named_parameters())[name].shape
    vectors = torch.randn(PROBES, shape.numel()) / shape.numel() ** 0.5
    engine = he.HessianOperator(model, loss, [name], data=[batch])
    modes = forward_over_reverse(model, loss, batch, name)
    stacked = vectors.view(PROBES, *shape)
    with sdpa_kernel(SDPBackend.MATH):
        runs: dict[str, Callable[[], Tensor]] = {
            "engine": lambda: engine.matmat({name: vectors})[name],
            "forward_over_reverse": lambda: modes(stacked),
        }
        if model_name != "medium":  # minutes of compilation
            compiled = torch.compile(modes, fullgraph=True)
            runs["compiled"] = lambda: compiled(stacked)
        wanted = runs["engine"]().view(PROBES, -1)
        errors = {k: float((run().reshape(PROBES, -1) - wanted).norm() / wanted.norm()) for k, run in runs.items()}
        medians = alternate(runs, rounds=3)
    benchmark.extra_info.update(
        size=model_name,
        probes=PROBES,
        **{f"{k}_times_slower": medians[k] / medians["engine"] for k in runs if k != "engine"},
        **{f"{k}_error": error for k, error in errors.items() if k != "engine"},
    )
    benchmark.pedantic(runs["engine"], rounds=1)
