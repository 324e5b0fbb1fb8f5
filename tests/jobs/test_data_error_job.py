"""The job behind bars for the choice of data: right products, the same bits resumed, refusals before any work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interruptions import interrupted_at
from problems import Case, dense_hessian, gpt, mlp
from torch import nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, OutOfMemoryError, RunFolderError
from hvp_engine.jobs.data_error import GroupProducts
from hvp_engine.krylov.probes import probe
from hvp_engine.results.data_error import QUANTITIES
from hvp_engine.results.data_errors import DataErrors

BLOCKS = ["ln_f.weight", "wte.weight", "layers.0.attn.wq.weight"]


def errors(case: Case, blocks: Any = None, **options: Any) -> DataErrors:
    return he.data_error(case.model, case.loss, blocks, data=case.data, check=False, progress=False, **options)


def arrays(found: DataErrors) -> dict[str, bytes]:
    kept = {f"{b}/{k}": v for b, forms in found._forms.items() for k, v in vars(forms).items() if k != "numel"}
    return {key: value.tobytes() for key, value in kept.items()}


def test_forms_are_those_of_the_dense_matrices_of_the_groups() -> None:
    case = mlp()
    found = errors(case, precision="fp64", groups=4)
    samples = [tuple(t[i : i + 1] for t in batch) for batch in case.data for i in range(len(batch[0]))]
    assert found.samples.tolist() == [2, 3, 3, 3] and found.weights.tolist() == [2.0, 3.0, 3.0, 3.0]
    groups = [samples[0:2], samples[2:5], samples[5:8], samples[8:11]]
    dense = np.stack([dense_hessian(Case(case.model, case.loss, g)).numpy() * len(g) for g in groups])
    forms = found._forms["full"]
    z = np.stack([probe(0, "full", k, forms.numel, "gaussian", torch.float64).numpy() for k in range(1, 9)])
    products = np.einsum("gij,sj->sgi", dense, z)
    np.testing.assert_allclose(forms.forms, np.einsum("si,sgi->sg", z, products), atol=1e-9)
    np.testing.assert_allclose(forms.gram, np.einsum("sgi,shi->sgh", products, products), atol=1e-9)
    halves = [(dense[0] + dense[2]) / 5, (dense[1] + dense[3]) / 6]
    for half, matrix in enumerate(halves):
        values, vectors = np.linalg.eigh(matrix)
        for end, place in enumerate((-1, 0)):
            assert forms.residuals[half, end] < 1e-3 * abs(values).max()
            of_groups = np.einsum("i,gij,j->g", vectors[:, place], dense, vectors[:, place])
            np.testing.assert_allclose(forms.quotients[half, end], of_groups, atol=3e-3 * abs(values).max())


def linear_regression(seed: int, samples: int) -> tuple[Case, np.ndarray]:
    """A linear model under half the squared error: the expected Hessian is the covariance of the inputs."""
    covariance = np.r_[5.0, 2.0, np.full(8, 0.2)]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 10, generator=generator) * torch.from_numpy(covariance).sqrt().float()
    model = nn.Linear(10, 1, bias=False)
    data = [(x, torch.zeros(len(x), 1)) for x in inputs.split(48)]  # the last batch is smaller
    return Case(model, lambda m, b: (F.mse_loss(m(b[0]), b[1], reduction="sum") / 2, len(b[0])), data), covariance


def test_bars_hold_the_covariance_of_linear_regression() -> None:
    held = dict.fromkeys(QUANTITIES, 0)
    for seed in range(12):
        case, covariance = linear_regression(seed, 200)
        inputs = torch.cat([batch[0] for batch in case.data]).double()
        hessian = inputs.T @ inputs / len(inputs)
        bars = errors(case).centred({"full": (float(hessian.trace()), float(hessian.norm()))})["full"]
        truth = (covariance.sum(), np.linalg.norm(covariance), 5.0, 0.2)
        for quantity, true in zip(QUANTITIES, truth, strict=True):
            bar = getattr(bars, quantity)
            held[quantity] += bar.low <= true <= bar.high
        assert bars.largest.low > 2.0  # and are of use
    assert all(count >= 10 for count in held.values()), held


def test_ignored_tokens_have_no_weight() -> None:
    found = errors(gpt(), ["ln_f.weight"])
    assert found.samples.tolist() == [1] * 5
    targets = torch.cat([batch[1] for batch in gpt().data])
    assert found.weights.tolist() == (targets != he.losses.IGNORE).sum(1).tolist()


@pytest.mark.parametrize(("stop", "memory"), [(1, None), (13, None), (20, None), (25, None), (33, 67_000)])
def test_an_interrupted_job_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, memory: int | None
) -> None:
    wanted = errors(gpt(), BLOCKS, memory=memory)
    with interrupted_at(stop, GroupProducts):
        errors(gpt(), BLOCKS, memory=memory, out=tmp_path)
    original, taken = GroupProducts.step, 0

    def counted(state: GroupProducts) -> int:
        nonlocal taken
        taken += 1
        return original(state)

    with monkeypatch.context() as patch:
        patch.setattr(GroupProducts, "step", counted)
        resumed = errors(gpt(), BLOCKS, memory=memory, out=tmp_path)
    assert arrays(resumed) == arrays(wanted)
    assert resumed.manifest["plan"]["waves"] == (1 if memory is None else 2)
    assert taken == 28 * resumed.manifest["plan"]["waves"] - stop
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "spectra.safetensors"]
    assert arrays(errors(gpt(), BLOCKS, memory=memory, out=tmp_path)) == arrays(wanted)


def test_spectra_are_the_same_bits_with_bars_beside_them_in_the_run_folder(tmp_path: Path) -> None:
    case = gpt()
    options = {"data": case.data, "steps": 6, "probes": 2, "progress": False}
    plain = he.slq(case.model, case.loss, BLOCKS, **options)
    assert plain.data_error is None
    for _ in range(2):  # computed, and returned as complete
        found = he.slq(case.model, case.loss, BLOCKS, data_error=True, out=tmp_path, **options)
        assert all((found[b].nodes == plain[b].nodes).all() for b in BLOCKS)
        assert found.data_error is not None and list(found.data_error) == BLOCKS
        assert found.data_error["wte.weight"].trace.value == found["wte.weight"].trace().value
    loaded = he.Spectra.load(tmp_path)
    assert loaded.summary() == found.summary() and "Choice of data: 95 % bars" in found.summary()
    loaded.save(tmp_path / "copy")
    assert he.Spectra.load(tmp_path / "copy").summary() == found.summary()
    other = gpt()
    other.data[0] = (other.data[0][0].roll(1), other.data[0][1])
    with pytest.raises(RunFolderError):
        he.slq(other.model, other.loss, BLOCKS, data_error=True, out=tmp_path, **{**options, "data": other.data})


def test_bars_are_added_to_a_run_that_was_made_without(tmp_path: Path) -> None:
    case = gpt()
    options = {"data": case.data, "steps": 3, "probes": 1, "progress": False, "check": False, "out": tmp_path}
    he.slq(case.model, case.loss, ["ln_f.weight"], **options)
    assert he.Spectra.load(tmp_path).data_error is None
    he.slq(case.model, case.loss, ["ln_f.weight"], data_error=True, **options)
    assert he.Spectra.load(tmp_path).data_error is not None


def test_adaptive_jobs_have_bars_too_whose_settings_are_their_own(tmp_path: Path) -> None:
    case = gpt()
    options = {"data": case.data, "check": False, "progress": False}
    found = he.slq(case.model, case.loss, ["ln_f.weight"], tolerance=0.1, data_error=True, out=tmp_path, **options)
    alone = he.data_error(case.model, case.loss, ["ln_f.weight"], **options)
    assert found.data_error is not None and arrays(found.data_error) == arrays(alone)
    assert "tolerance" not in alone.manifest["config"]


def refused(match: str, model: nn.Module, loss: Any, data: Any) -> None:
    """Both calls refuse it, ``slq`` before its first step."""
    with pytest.raises(ConfigurationError, match=match):
        he.data_error(model, loss, data=data, check=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvp_engine.jobs.slq.BatchedLanczos", lambda *_: pytest.fail("the job was begun"))
        with pytest.raises(ConfigurationError, match=match):
            he.slq(model, loss, data=data, data_error=True, check=False)


def test_a_loss_without_data_is_refused() -> None:
    refused("needs data, and the loss takes none", nn.Linear(2, 1), lambda m: m.weight.square().sum(), None)


def test_one_sample_is_refused_and_the_fix_works() -> None:
    model, loss = nn.Linear(3, 2), lambda m, b: F.cross_entropy(m(b[0]), b[1])
    one = (torch.randn(1, 3), torch.tensor([1]))
    refused("give two batches or more, .* There is one batch, of one sample", model, loss, [one])
    assert len(he.data_error(model, loss, data=[one, (torch.randn(1, 3), torch.tensor([0]))], check=False).samples) == 2


def test_a_batch_that_cannot_be_cut_is_refused_and_the_fix_works() -> None:
    model, adjacency = nn.Linear(3, 2), torch.rand(5, 5)
    batch = {"x": torch.randn(5, 3), "edges": torch.randint(0, 5, (7, 2))}
    loss = lambda m, b: (adjacency @ m(b["x"])).square().mean()  # noqa: E731
    refused("There is one batch, whose tensors share no leading dimension", model, loss, [batch])
    found = he.data_error(model, loss, data=[batch, {**batch, "x": torch.randn(5, 3)}], check=False)
    assert found.samples.tolist() == [1, 1]


def test_pieces_that_do_not_recombine_are_not_made() -> None:
    model = nn.Linear(3, 2)
    loss = lambda m, b: m(b).square().mean().sqrt()  # noqa: E731
    batch = torch.randn(6, 3)
    refused("There is one batch, which cannot be cut. Splitting batch 0", model, loss, [batch])
    found = he.data_error(model, loss, data=[batch, torch.randn(6, 3)], check=False)
    assert found.samples.tolist() == [6, 6]


def test_a_half_without_weight_is_refused() -> None:
    case = gpt()
    for _, targets in case.data:
        targets[:] = he.losses.IGNORE
    case.data[0][1][0, 0] = 1
    with pytest.raises(ConfigurationError, match="One half of the data has no weight"):
        errors(case, ["ln_f.weight"])


def test_a_budget_too_small_is_refused_without_advice_that_the_call_has_no_argument_for() -> None:
    with pytest.raises(OutOfMemoryError, match="beside the gradient graph. Use smaller blocks"):
        errors(gpt(), ["wte.weight"], memory=55_000)


@pytest.mark.parametrize("groups", [1, 2.5, "8"])
def test_groups_must_be_two_or_more(groups: Any) -> None:
    with pytest.raises(ConfigurationError, match="groups="):
        errors(mlp(), groups=groups)


@pytest.mark.parametrize("bar", [0, -0.1, float("nan"), "5 %"])
def test_a_bar_must_be_a_share(bar: Any) -> None:
    with pytest.raises(ConfigurationError, match="bar="):
        errors(mlp(), groups=2).samples_for(bar)


def test_data_without_curvature_have_no_error_and_need_no_samples() -> None:
    model = nn.Linear(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = he.data_error(model, lambda m, b: m(b).mean(), data=[torch.randn(8, 3)], check=False)
    assert found["full"].trace.value == 0.0 and found["full"].largest.high == 0.0
    assert found.samples_for(0.05)["full"] == dict.fromkeys(QUANTITIES, 0.0)
