"""Spectra with bars for the choice of data: what forbids the bars is said before the spectra, which are never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import mlp
from torch import nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, HvpEngineError, OutOfMemoryError, RunFolderError
from hvp_engine.jobs.data_error import GroupProducts
from hvp_engine.krylov.lanczos import BatchedLanczos

IGNORED = -100


def spectra(model: nn.Module, data: list[Any], **options: Any) -> he.Spectra:
    settings = {"steps": 4, "probes": 1, "check": False, "progress": False, **options}
    return he.slq(model, he.losses.classification, data=data, data_error=True, **settings)


def refused(kind: type[HvpEngineError], match: str, model: nn.Module, data: list[Any], **options: Any) -> None:
    """The call refuses it before the first step of any job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchedLanczos, "step", lambda _: pytest.fail("a step was taken"))
        with pytest.raises(kind, match=match):
            spectra(model, data, **options)


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 1000), nn.GELU(), nn.Linear(1000, 10))


def batches(count: int, features: int) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(4, features, generator=generator), torch.randint(0, 10, (4,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("options", [{"reorthogonalize": "none"}, {"basis": "int8-mmap"}])
def test_vectors_that_do_not_fit_are_refused_before_the_spectra(options: dict[str, Any]) -> None:
    match = "For data_error=True: One stream .* needs .*raise memory= to at least .* Or leave out data_error=True"
    fixed = {"memory": 20 << 20, "head_curvature": False, **options}
    refused(OutOfMemoryError, match, wide(), batches(8, 200), **fixed)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_half_without_weight_is_refused_before_the_spectra(tmp_path: Path, samples: int) -> None:
    data = [
        (x[:samples], y[:samples] if i % 2 else torch.full((samples,), IGNORED))
        for i, (x, y) in enumerate(batches(8, 20))
    ]
    refused(ConfigurationError, "One half of the data has no weight", nn.Linear(20, 10), data, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_few_evaluations_show_that_both_halves_have_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = he.losses.classification

    def loss(model: nn.Module, batch: Any) -> Any:
        seen.append(len(batch[1]))
        return original(model, batch)

    def first(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hvp_engine.api.spectra._spectra", first)
    data = batches(80, 20)
    data[0] = (data[0][0], torch.full((4,), IGNORED))
    with pytest.raises(ZeroDivisionError):
        he.slq(nn.Linear(20, 10), loss, data=data, data_error=True, check=False, progress=False)
    assert len(seen) < len(data) / 2


@pytest.mark.parametrize("is_file", [True, False])
def test_a_folder_of_the_bars_that_serves_no_job_is_refused_before_the_spectra(tmp_path: Path, is_file: bool) -> None:
    case, inside = mlp(), tmp_path / "data_error"
    if is_file:
        inside.write_text("mine")
    else:
        he.data_error(case.model, he.losses.classification, data=case.data, seed=5, check=False, out=inside)
    match = "data_error cannot be created" if is_file else "data_error holds another job .*seed: 5 there, 0 here"
    refused(RunFolderError, match, case.model, case.data, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data_error"]


def test_spectra_are_returned_where_their_bars_fail_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = mlp()

    def fails(_: GroupProducts) -> int:
        raise OutOfMemoryError("Memory ran out.")

    for out in (None, tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(GroupProducts, "step", fails)
            with pytest.warns(RuntimeWarning, match="bars for the choice of data are not: Memory ran out") as caught:
                found = spectra(case.model, case.data, out=out)
        assert caught[-1].filename == __file__
        assert found.data_error is None and len(found) == 1
    again = spectra(case.model, case.data, out=tmp_path)
    assert again.data_error is not None and (again["full"].nodes == found["full"].nodes).all()


def test_complete_spectra_with_bars_are_returned_without_an_operator_of_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = mlp()
    first = spectra(case.model, case.data, out=tmp_path)
    monkeypatch.setattr("hvp_engine.jobs.data_error_ahead.describe", lambda _: pytest.fail("was looked at"))
    assert spectra(case.model, case.data, out=tmp_path).summary() == first.summary()
