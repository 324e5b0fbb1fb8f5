"""Matrices scaled from both sides by a diagonal, against dense ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import Case, dense_hessian, gpt, mlp, total_and_weight
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.jobs.data_error import divide
from hvp_engine.operators.registry import OPERATORS

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.9), eps=1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.5, 0.6), eps=1e-3, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2, eps=1e-3),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, eps=1e-3),
}


def positive(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.1 for name, p in model.named_parameters()
    }


def flat(model: nn.Module, diagonal: dict[str, Tensor]) -> Tensor:
    return torch.cat([diagonal[name].double().reshape(-1) for name, _ in model.named_parameters()])


def trained(case: Case, make: Make, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = make(case.model.parameters())
    for _ in range(steps):
        for batch in case.data:
            optimizer.zero_grad()
            total_and_weight(case.loss, case.model, batch)[0].backward()
            optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", list(OPERATORS))
@pytest.mark.parametrize("microbatch", [None, 2])
def test_products_are_the_operators_own_between_two_scalings(name: str, microbatch: int | None) -> None:
    case = mlp()
    diagonal = positive(case.model)
    weight, picked = "2.weight", torch.tensor([4, 0])
    blocks = [he.Block("all", [(n, None) for n in diagonal]), he.Block("rows", [(weight, picked), ("0.bias", slice(1, 4))])]
    plain, scaled = (
        OPERATORS[name](
            case.model, case.loss, blocks, data=case.data, precision="fp64", microbatch=microbatch, precondition=given
        )
        for given in (None, diagonal)
    )
    roots = {
        "all": flat(case.model, diagonal).rsqrt(),
        "rows": torch.cat([diagonal[weight][picked].reshape(-1), diagonal["0.bias"][1:4]]).rsqrt(),
    }
    vectors = {block: torch.randn(3, size, dtype=torch.float64) for block, size in plain.numel.items()}
    scaled.scheduler.plan.streams_per_pass = 2
    wanted = plain.matmat({block: vector * roots[block] for block, vector in vectors.items()})
    before = {block: vector.clone() for block, vector in vectors.items()}
    found = scaled.matmat(vectors)
    for block in vectors:
        torch.testing.assert_close(found[block], wanted[block] * roots[block], rtol=1e-11, atol=1e-13)
        assert torch.equal(vectors[block], before[block])


def test_products_of_parts_of_the_data_are_scaled_too() -> None:
    case = mlp()
    operator = he.HessianOperator(case.model, case.loss, data=case.data, precision="fp64", precondition=positive(case.model))
    vectors = {"full": torch.randn(2, operator.numel["full"], dtype=torch.float64)}
    whole = operator.sweep(vectors)["full"]
    divide(operator, 2)
    parts, weights = operator.sweep_apart([vectors, vectors], lambda group: group)
    torch.testing.assert_close((parts[0]["full"] + parts[1]["full"]) / sum(weights), whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizers_diagonal_is_what_it_divides_its_next_step_by(name: str) -> None:
    case = mlp()
    optimizer = trained(case, OPTIMIZERS[name])
    operator = he.HessianOperator(case.model, case.loss, data=case.data, precision="fp64", precondition=optimizer)
    assert operator.preconditioner is not None
    scale = operator.preconditioner.scales["full"]
    # A further step with a zero gradient, no momentum in exp_avg but ones, and no decay of v: lr * m_hat / P.
    probe = copy.deepcopy(optimizer)
    parameters = [p for group in probe.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    for group in probe.param_groups:
        group["lr"], group["weight_decay"], group["betas"] = 1e-3, 0.0, (0.0, 1.0)
    step = {id(p): float(probe.state[p]["step"]) for p in parameters}
    for group, old in zip(probe.param_groups, optimizer.param_groups, strict=True):
        beta = float(old["betas"][1])
        for p in group["params"]:
            state = probe.state[p]
            for key in ("exp_avg_sq", "max_exp_avg_sq"):  # bias-corrected by hand, since beta is now 1
                if key in state:
                    state[key].div_(1 - beta ** step[id(p)])
    moved = []
    for p, old in zip(parameters, before, strict=True):
        state, group = probe.state[p], probe.param_groups[0]
        if name == "Adamax":
            moved.append((1.0 / state["exp_inf"]).double().reshape(-1))
        else:
            second = state["max_exp_avg_sq" if name == "amsgrad" else "exp_avg_sq"]
            moved.append((1.0 / (second.double().sqrt() + group["eps"])).reshape(-1))
        assert p.shape == old.shape
    torch.testing.assert_close(scale.square(), torch.cat(moved), rtol=1e-6, atol=0)
