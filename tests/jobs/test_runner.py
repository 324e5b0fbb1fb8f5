"""The life of a job belongs to the runner, whatever kind of job and operator it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hutchinson import Squares, TraceJob, Traces
from interruptions import interrupted_at
from problems import Case, dense_hessian, gpt
from torch import Tensor

import hvp_engine as he
from hvp_engine.blocks import ResolvedBlock
from hvp_engine.errors import OutOfMemoryError, RunFolderError
from hvp_engine.jobs.runner import run
from hvp_engine.jobs.slq import SlqJob
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem.objective import MicroBatch

BLOCKS = ["ln_f.weight", "wte.weight", "layers.0.attn.wq.weight"]
OPTIONS = {"steps": 1, "reorthogonalize": "none", "check": False}


def traces(case: Case, out: Path | None, probes: int = 3, **options: object) -> Traces:
    build = partial(HessianOperator, case.model, case.loss, BLOCKS, data=case.data)
    return run(TraceJob(JobSettings(probes=probes, **{**OPTIONS, **options})), build, out, False)


def test_another_kind_of_job_finds_what_the_dense_matrix_says(tmp_path: Path) -> None:
    found = traces(gpt(), tmp_path, probes=400)
    for block, values in found.values.items():
        exact = float(dense_hessian(gpt(), [block]).trace())
        assert abs(np.mean(values) - exact) < 4 * np.std(values) / 20
    assert traces(gpt(), tmp_path, probes=400).values == found.values  # what is complete is returned
    assert found.manifest["plan"]["waves"] == 1 and found.manifest["identity"]["job"] == "trace"


@pytest.mark.parametrize("memory", [None, 400_000])
@pytest.mark.parametrize("stop", [1, 2])
def test_another_kind_of_job_resumes_to_the_same_bits(tmp_path: Path, stop: int, memory: int | None) -> None:
    wanted = traces(gpt(), None, memory=memory)
    with interrupted_at(stop, Squares):
        traces(gpt(), tmp_path, memory=memory)
    assert traces(gpt(), tmp_path, memory=memory).values == wanted.values
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_folder_of_another_kind_of_job_is_refused(tmp_path: Path) -> None:
    case = gpt()
    he.slq(case.model, case.loss, BLOCKS, data=case.data, probes=3, out=tmp_path, **OPTIONS)
    with pytest.raises(RunFolderError, match="holds another job .*job: None there, 'trace' here"):
        traces(gpt(), tmp_path)


def test_a_job_that_does_not_fit_is_refused_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Squares, "step", lambda state: pytest.fail("a step was taken"))
    with pytest.raises(OutOfMemoryError, match="Use smaller blocks"):
        traces(gpt(), None, memory=90_000)


class Shifted(GradientGraph):
    """The Hessian plus three times the identity."""

    def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        super().product(block, vectors, out, batched=batched)
        out.add_(vectors, alpha=3.0 * self.weight)


class ShiftedOperator(CurvatureOperator):
    matrix = "shifted hessian"

    def _graph(self, micro: MicroBatch) -> Shifted:
        return Shifted(*self._evaluate(micro), self._parameters)


def test_another_operator_runs_the_same_job_and_keeps_a_folder_of_its_own(tmp_path: Path) -> None:
    case = gpt()
    settings = JobSettings(steps=12, probes=2, check=False)

    def spectra(kind: type[CurvatureOperator]) -> he.Spectra:
        return run(
            SlqJob(settings), partial(kind, case.model, case.loss, ["ln_f.weight"], data=case.data), tmp_path, False
        )

    shifted = spectra(ShiftedOperator)["ln_f.weight"].nodes
    with pytest.raises(RunFolderError, match="matrix: 'shifted hessian' there, None here"):
        spectra(HessianOperator)
    plain = he.slq(case.model, case.loss, ["ln_f.weight"], data=case.data, steps=12, probes=2, check=False)[
        "ln_f.weight"
    ].nodes
    np.testing.assert_allclose(shifted, plain + 3.0, atol=1e-5)
