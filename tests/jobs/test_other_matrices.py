"""Jobs on other matrices than the Hessian: interrupted, in waves, and in folders of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import gpt

import hvp_engine as he
from hvp_engine.errors import RunFolderError
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.operators.head.fusion import HeadFusion
from hvp_engine.operators.registry import OPERATORS

BLOCKS = ["layers.0.attn.wq.weight", "ln_f.weight"]
ROWS = ("fisher", "empirical_fisher", "empirical_fisher_tokens")


def job(out: Path | None, operator: str, **options: Any) -> he.Spectra:
    case = gpt()
    optimizer = torch.optim.AdamW(case.model.parameters())
    case.loss(case.model, case.data[0])[0].backward()
    optimizer.step()
    given = {"steps": 4, "probes": 2, "check": False, "precondition": optimizer, **options}
    return he.slq(case.model, case.loss, BLOCKS, data=case.data, out=out, operator=operator, **given)


def same(one: he.Spectra, other: he.Spectra) -> bool:
    return all(np.array_equal(one[block].nodes, other[block].nodes) for block in BLOCKS)


@pytest.mark.parametrize("operator", ROWS)
def test_an_interrupted_job_resumes_to_the_same_bits(
    operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BatchedLanczos.step

    def step(state: BatchedLanczos) -> int:
        if state.position == 2:
            raise KeyboardInterrupt
        return original(state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BatchedLanczos, "step", step)
        job(tmp_path / "run", operator)
    resumed = job(tmp_path / "run", operator)
    assert same(resumed, job(None, operator))
    with pytest.raises(RunFolderError, match="precondition"):
        job(tmp_path / "run", operator, precondition=None)


@pytest.mark.parametrize("operator", ROWS)
def test_matrices_of_squares_have_no_negative_eigenvalues_and_no_use_for_the_heads_curvature(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def form(*_: Any, **__: Any) -> None:
        raise AssertionError("formed in vain")

    monkeypatch.setattr(HeadFusion, "form", form)
    spectra = job(None, operator, steps=64, probes=1, precision="fp64", check=True)
    for block in BLOCKS:
        smallest, largest = spectra[block].extremes()
        assert largest > 0 and smallest >= -1e-12 * largest


def test_bars_for_the_choice_of_data_are_those_of_the_matrix_asked_for() -> None:
    case = gpt()
    found = he.data_error(
        case.model, case.loss, BLOCKS, data=case.data, operator="empirical_fisher_tokens", precision="fp64", check=False
    )
    exact = he.slq(
        case.model,
        case.loss,
        BLOCKS,
        data=case.data,
        operator="empirical_fisher_tokens",
        steps=64,
        probes=1,
        precision="fp64",
    )
    for block in BLOCKS:
        assert found[block].trace.low <= exact[block].trace().value <= found[block].trace.high
    assert "expected empirical fisher tokens" in found.summary()


@pytest.mark.parametrize("operator", ROWS)
def test_less_accurate_arithmetic_gives_about_the_same(operator: str) -> None:
    exact, rounded = (
        job(None, operator, steps=30, probes=1, precision=precision, precondition=None)["ln_f.weight"].extremes()[1]
        for precision in ("fp64", "bf16")
    )
    assert abs(rounded - exact) < 0.1 * exact


@pytest.mark.parametrize("operator", OPERATORS)
def test_eigenpairs_are_those_of_the_matrix_that_was_asked_for(operator: str) -> None:
    case = gpt()
    diagonal = {name: 2.0 for name, _ in case.model.named_parameters()}
    options: dict[str, Any] = {"data": case.data, "operator": operator, "precision": "fp64", "seed": 3, "check": False}
    found = he.eigsh(case.model, case.loss, BLOCKS, k=3, tolerance=1e-8, precondition=diagonal, **options)
    dense = he.dense(case.model, case.loss, BLOCKS, precondition=diagonal, **options)
    for block in BLOCKS:
        values = torch.linalg.eigvalsh(dense[block])
        largest = values[values.abs().argsort(descending=True)[:3]].sort().values
        torch.testing.assert_close(torch.from_numpy(found[block].values), largest, rtol=1e-7, atol=1e-10)
