"""Traces, diagonals and norms as jobs: against dense matrices, interrupted at every step, and what they refuse."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import interrupted_at
from problems import CASES, Case, dense_hessian, gpt, mlp, quadratic, symmetric
from typer.testing import CliRunner

import hvp_engine as he
from hvp_engine.cli.commands import app
from hvp_engine.errors import ConfigurationError, OutOfMemoryError, RunFolderError
from hvp_engine.jobs.sampled import SampledWave

JOBS: dict[str, Callable[..., Any]] = {"trace": he.trace, "diagonal": he.diagonal, "norms": he.norms}
BLOCKS = ["ln_f.weight", "wte.weight", "layers.0.attn.wq.weight"]
METHODS = ["xtrace", "hutchinson"]


def found(kind: str, case: Case, blocks: Any = None, **options: Any) -> Any:
    return JOBS[kind](case.model, case.loss, blocks, data=case.data, check=False, progress=False, **options)


def arrays(results: Any) -> dict[str, Any]:
    """Everything that was found, to the last bit."""
    if isinstance(results, he.Diagonals):
        return {n: tuple(t.numpy().tobytes() for t in (d.value, d.stderr, d.half)) for n, d in results.items()}
    return {name: repr(number) for name, number in results.items()}


def spec(name: str, case: Case) -> Any:
    weight = next(name for name, p in case.model.named_parameters() if p.dim() >= 2)
    return {
        "full": None,
        "parameter": "parameter",
        "globs": {"weights": ["*weight"], "all": ["*"]},
        "slices": [he.Block("pieces", [(weight, slice(0, 1)), (weight, slice(2, 3))])],
    }[name]


@cache
def whole_matrix(make: Callable[[], Case]) -> torch.Tensor:
    return dense_hessian(make())


def dense(whole: torch.Tensor, case: Case, operator: he.HessianOperator, block: str) -> torch.Tensor:
    """The float64 matrix of a block, out of the whole one."""
    where = torch.arange(sum(p.numel() for p in case.model.parameters()))
    sizes = [p.numel() for p in case.model.parameters()]
    numbers = {
        n: place.reshape(p.shape)
        for (n, p), place in zip(case.model.named_parameters(), where.split(sizes), strict=True)
    }
    parts = operator.partition.blocks[block].parts
    rows = torch.cat([part.take(numbers[part.parameter]).reshape(-1) for part in parts])
    return whole[rows][:, rows]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", ["full", "parameter", "globs", "slices"])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_estimates_hold_what_the_dense_matrices_say(make: Any, blocks: str, method: str) -> None:
    case = make()
    chosen = spec(blocks, case)
    operator = he.HessianOperator(case.model, case.loss, chosen, data=case.data)
    options = {"products": 24, "method": method, "seed": 3}
    norms, traces = (found(kind, case, chosen, **options) for kind in ("norms", "trace"))
    diagonals = found("diagonal", case, chosen, **options)
    entries = []
    for block in operator.blocks:
        matrix, numbers = dense(whole_matrix(make), case, operator, block), norms[block]
        assert numbers.trace == traces[block]
        for bar, true in (
            (numbers.trace, float(matrix.trace())),
            (numbers.frobenius_norm, float(matrix.norm())),
        ):
            assert abs(bar.value - true) <= 0.8 * (bar.high - bar.low)  # about three standard errors
        held = (diagonals[block].low <= matrix.diagonal()) & (matrix.diagonal() <= diagonals[block].high)
        entries.append(held.double().mean())
        assert numbers.numel == diagonals.numel[block] == len(matrix)
    assert np.mean(entries) > 0.9


def test_small_blocks_are_multiplied_out_and_exact() -> None:
    case = mlp()
    traces = found("trace", case, "parameter", products=40)
    for name in ("0.bias", "0.weight", "4.weight"):
        exact = float(dense_hessian(case, [name]).trace())
        assert traces[name].reading == "exact" and traces[name].low <= exact <= traces[name].high
        assert traces[name].value == pytest.approx(exact, abs=1e-5)
        assert traces.manifest["sampling"][name] == {"method": "exact", "products": traces.numel[name]}


def test_products_are_as_many_as_were_asked_for() -> None:
    for method, products in (("xtrace", 30), ("hutchinson", 31)):
        traces = found("trace", gpt(), products=products, method=method)
        assert traces.manifest["sampling"] == {"full": {"method": method, "products": products}}


@pytest.mark.parametrize("method", METHODS)
def test_a_block_stops_where_its_bar_is_small_enough(method: str, caplog: pytest.LogCaptureFixture) -> None:
    problem = quadratic(symmetric(1.0 / torch.arange(1.0, 301.0) ** 1.5).float())
    with caplog.at_level(logging.WARNING):
        traces = he.trace(problem.model, problem.loss, tolerance=0.1, method=method, check=False, products=1000)
    bar, taken = traces["full"], traces.manifest["sampling"]["full"]["products"]
    assert (bar.high - bar.low) / 2 <= 0.1 * abs(bar.value) and taken < 1000
    assert bar.low <= float(problem.matrix.trace()) <= bar.high
    assert traces.manifest["not_reached"] == [] and not caplog.messages


def test_leaving_one_out_takes_far_fewer_products_where_eigenvalues_decay() -> None:
    problem = quadratic(symmetric(1.0 / torch.arange(1.0, 301.0) ** 1.5).float())
    taken = [
        he.trace(problem.model, problem.loss, tolerance=0.02, method=method, check=False, products=3000).manifest
        for method in METHODS
    ]
    few, many = (manifest["sampling"]["full"]["products"] for manifest in taken)
    assert many >= 5 * few


def test_a_tolerance_that_is_not_reached_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        traces = found("trace", gpt(), tolerance=1e-4, products=20)
    assert traces.manifest["not_reached"] == ["full"] and "was not reached in 1 of 1 blocks (full)" in caplog.text
    assert any("0.0001 was not reached" in note for note in traces.manifest["notes"])
    assert "20!" in traces.summary()


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("method", METHODS)
def test_a_job_interrupted_at_every_step_resumes_to_the_same_bits(tmp_path: Path, kind: str, method: str) -> None:
    options = {"products": 18, "method": method}
    wanted = found(kind, mlp(), "parameter", **options)
    original, steps = SampledWave.step, 0

    def counted(state: SampledWave) -> int:
        nonlocal steps
        steps += 1
        return original(state)

    options["memory"] = 16_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampledWave, "step", counted)
        again = found(kind, mlp(), "parameter", out=tmp_path / "whole", **options)
    assert arrays(again) == arrays(wanted)
    assert steps >= 4
    assert again.manifest["plan"]["waves"] == 2 or method == "hutchinson"  # which keeps few vectors
    for stop in range(1, steps):
        out = tmp_path / str(stop)
        with interrupted_at(stop, SampledWave):
            found(kind, mlp(), "parameter", out=out, **options)
        assert arrays(found(kind, mlp(), "parameter", out=out, **options)) == arrays(wanted)
        names = {"manifest.json", "spectra.safetensors"} if kind == "diagonal" else {"manifest.json"}
        assert {path.name for path in out.iterdir()} == names
    assert arrays(found(kind, mlp(), "parameter", out=out, **options)) == arrays(wanted)  # what is complete is read


def test_another_question_is_another_job(tmp_path: Path) -> None:
    found("trace", gpt(), BLOCKS, products=16, out=tmp_path)
    for kind, options in (
        ("norms", {"products": 16}),
        ("trace", {"products": 17}),
        ("trace", {"products": 16, "method": "hutchinson"}),
        ("trace", {"products": 16, "seed": 1}),
        ("trace", {"products": 16, "tolerance": 0.1}),
    ):
        with pytest.raises(RunFolderError, match="another job"):
            found(kind, gpt(), BLOCKS, out=tmp_path, **options)


@pytest.mark.parametrize("kind", JOBS)
def test_vectors_that_do_not_fit_are_refused_and_the_advice_helps(kind: str) -> None:
    case, memory = gpt(), 400_000
    with pytest.raises(OutOfMemoryError, match="Use fewer products, method='hutchinson', smaller blocks"):
        found(kind, case, products=100, memory=memory)
    assert found(kind, case, products=100, memory=memory, method="hutchinson")
    assert found(kind, case, products=8, memory=memory)
    assert found(kind, case, "parameter", products=100, memory=memory)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"products": 7}, "products=7 must be a whole number of at least 8"),
        ({"products": 200_000}, "more than 100,000"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be a number above 0"),
        ({"tolerance": "small"}, "tolerance='small' must be"),
        ({"method": "hutch++"}, "method='hutch\\+\\+' is neither"),
        ({"operator": "jacobian"}, "jacobian"),
    ],
)
def test_settings_that_are_none_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        found("trace", mlp(), **options)


@pytest.mark.parametrize("kind", JOBS)
def test_a_run_is_shown_by_its_kind(tmp_path: Path, kind: str) -> None:
    results = found(kind, mlp(), "parameter", products=16, out=tmp_path)
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0 and results.summary() in shown.output
    assert "most_products   16" in shown.output and "tolerance" not in shown.output
    as_json = CliRunner().invoke(app, ["show", "--json", str(tmp_path)])
    told = json.loads(as_json.output)
    assert told.pop("run")["settings"]["most_products"] == 16 and told == json.loads(json.dumps(results.record()))


def test_another_matrix_and_a_preconditioner_count() -> None:
    case = mlp()
    diagonal = {name: torch.full_like(p, 4.0) for name, p in case.model.named_parameters()}
    plain, scaled = (
        found("trace", case, products=200, operator="ggn", precondition=p, precision="fp64") for p in (None, diagonal)
    )
    assert plain["full"].reading == "exact"
    assert scaled["full"].value == pytest.approx(plain["full"].value / 4.0)
    assert abs(plain["full"].value - float(dense_hessian(case).trace())) > 1e-3
