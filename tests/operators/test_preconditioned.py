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
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.0),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.5, 0.6), eps=1e-3, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2, eps=1e-3),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, eps=1e-3),
}


def positive(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.1
        for name, p in model.named_parameters()
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
    blocks = [
        he.Block("all", [(n, None) for n in diagonal]),
        he.Block("rows", [(weight, picked), ("0.bias", slice(1, 4))]),
    ]
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
    for block, vector in vectors.items():
        torch.testing.assert_close(found[block], wanted[block] * roots[block], rtol=1e-11, atol=1e-13)
        assert torch.equal(vector, before[block])


def test_products_of_parts_of_the_data_are_scaled_too() -> None:
    case = mlp()
    operator = he.HessianOperator(
        case.model, case.loss, data=case.data, precision="fp64", precondition=positive(case.model)
    )
    vectors = {"full": torch.randn(2, operator.numel["full"], dtype=torch.float64)}
    whole = operator.sweep(vectors)["full"]
    divide(operator, 2)
    parts, weights = operator.sweep_apart([vectors, vectors], lambda group: group)
    torch.testing.assert_close((parts[0]["full"] + parts[1]["full"]) / sum(weights), whole, rtol=1e-10, atol=1e-13)


def _moment(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> Tensor:
    """What the last step divided, with its rate: the step is this over P."""
    state, beta = optimizer.state[parameter], group["betas"][0]
    step = float(state["step"])
    if not isinstance(optimizer, torch.optim.NAdam):
        return group["lr"] / (1 - beta**step) * state["exp_avg"]
    mu, following = (beta * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
    product = float(state["mu_product"])
    fresh = group["lr"] * (1 - mu) / (1 - product) * parameter.grad
    return fresh + group["lr"] * following / (1 - product * following) * state["exp_avg"]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizers_diagonal_is_what_its_last_step_was_divided_by(name: str) -> None:
    case = mlp()
    case.model.double()
    data = [(x.double(), y) for x, y in case.data]
    optimizer = trained(Case(case.model, case.loss, data), OPTIMIZERS[name])
    case.loss(case.model, data[0]).backward()
    before = [p.detach().clone() for p in case.model.parameters()]
    optimizer.step()
    operator = he.HessianOperator(case.model, case.loss, data=data, precision="fp64", precondition=optimizer)
    assert operator.preconditioner is not None
    scale = operator.preconditioner.scales["full"]
    group = optimizer.param_groups[0]
    moments = [_moment(optimizer, group, p).reshape(-1) for p in case.model.parameters()]
    moved = [(old - new.detach()).reshape(-1) for old, new in zip(before, case.model.parameters(), strict=True)]
    torch.testing.assert_close(torch.cat(moments) * scale.square(), torch.cat(moved), rtol=1e-9, atol=1e-13)


def test_the_spectrum_is_that_of_the_dense_scaled_hessian() -> None:
    case = mlp()
    optimizer = trained(case, OPTIMIZERS["AdamW"])
    spectrum = he.slq(
        case.model, case.loss, data=case.data, steps=110, probes=1, precision="fp64", precondition=optimizer
    )
    hessian = dense_hessian(case)
    group = optimizer.param_groups[0]
    diagonal = torch.cat(
        [
            (optimizer.state[p]["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(optimizer.state[p]["step"])))
            .sqrt()
            .add(group["eps"])
            .reshape(-1)
            for p in case.model.parameters()
        ]
    )
    root = diagonal.rsqrt()
    values = torch.linalg.eigvalsh(root[:, None] * hessian * root)
    assert math.isclose(spectrum["full"].largest(1).value, float(values[-1]), rel_tol=1e-6)
    assert math.isclose(spectrum["full"].smallest(1).value, float(values[0]), rel_tol=1e-6)
    assert spectrum.settings["matrix"] == "preconditioned hessian"


def test_tied_parameters_are_found_under_any_of_their_names_and_one_number_serves_a_parameter() -> None:
    model = gpt().model
    model.tied = model.layers[0].attn.wq  # type: ignore[assignment]
    case = Case(model, gpt().loss, gpt().data)
    given: dict[str, Any] = {name: 4.0 for name, _ in model.named_parameters()}
    given["tied.weight"] = given.pop("layers.0.attn.wq.weight")
    plain, scaled = (
        he.HessianOperator(model, case.loss, data=case.data, precision="fp64", precondition=p) for p in (None, given)
    )
    vectors = {"full": torch.randn(1, plain.numel["full"], dtype=torch.float64)}
    torch.testing.assert_close(scaled.matmat(vectors)["full"], plain.matmat(vectors)["full"] / 4.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("0.bias"), "has no entry for 0.bias. Give every one"),
        (lambda d: d.update({"0.bas": torch.ones(7)}), "no parameter of the model: 0.bas"),
        (lambda d: d["0.bias"].__setitem__(2, 0.0), "not positive and finite"),
        (lambda d: d["0.bias"].__setitem__(2, -1.0), "not positive and finite"),
        (lambda d: d["0.bias"].__setitem__(2, math.nan), "not positive and finite"),
        (lambda d: d["0.bias"].__setitem__(2, math.inf), "not positive and finite"),
        (lambda d: d["0.bias"].__setitem__(2, 1e-90), "no inverse root in torch.float32"),
        (lambda d: d.update({"0.bias": torch.ones(1, 7)}), r"shape \(1, 7\), the parameter \(7,\)"),
        (lambda d: d.update({"0.bias": "seven"}), "is of type str; give a tensor"),
        (lambda d: d.update({"0.bias": torch.ones(7, dtype=torch.complex64)}), "dense tensor of real numbers"),
        (lambda d: d.update({"0.bias": torch.ones(7, device="meta")}), "dense tensor of real numbers"),
    ],
)
def test_a_diagonal_that_is_none_is_refused(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    case = mlp()
    diagonal = positive(case.model)
    change(diagonal)
    with pytest.raises(ConfigurationError, match=message):
        he.HessianOperator(case.model, case.loss, data=case.data, precondition=diagonal)


def test_optimizers_that_do_not_fit_are_refused_with_what_to_do() -> None:
    case = mlp()

    def refused(given: Any, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            he.HessianOperator(case.model, case.loss, data=case.data, precondition=given)

    fresh = torch.optim.Adam(case.model.parameters())
    refused(fresh, "no state yet for 0.weight, .* Take a step first")
    refused(trained(Case(copy.deepcopy(case.model), case.loss, case.data), torch.optim.Adam), "not of a copy's")
    refused(torch.optim.SGD(case.model.parameters(), lr=0.1), "SGD, of which it is not known")
    refused(torch.ones(3), "precondition is of type Tensor")
    some = trained(case, lambda p: torch.optim.Adam(list(p)[:2]))
    refused(some, "does not hold these parameters of the blocks: 2.weight")
    he.HessianOperator(case.model, case.loss, ["0.weight"], data=case.data, precondition=some)  # what the message says
    case.loss(case.model, case.data[0]).backward()
    fresh.step()
    he.HessianOperator(case.model, case.loss, data=case.data, precondition=fresh)


def test_a_run_folder_is_known_by_its_diagonal(tmp_path: Path) -> None:
    case = mlp()
    diagonal = positive(case.model)

    def run(given: Any, folder: str) -> he.Spectra:
        return he.slq(
            case.model,
            case.loss,
            data=case.data,
            steps=3,
            probes=1,
            precondition=given,
            out=tmp_path / folder,
            check=False,
        )

    first = run(diagonal, "scaled")
    assert (
        run({name: d.clone() for name, d in diagonal.items()}, "scaled")["full"].extremes() == first["full"].extremes()
    )
    with pytest.raises(RunFolderError, match="precondition: full changed"):
        run(positive(case.model, seed=1), "scaled")
    with pytest.raises(RunFolderError, match="preconditioned hessian"):
        run(None, "scaled")
    run(None, "plain")
    with pytest.raises(RunFolderError, match="preconditioned hessian"):
        run(diagonal, "plain")
