"""What lies between blocks, against dense matrices; the job resumes to the same bits and refuses before it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import interrupted_at
from problems import CASES, Case, dense_hessian, gpt, mlp
from torch import nn

import hvp_engine as he
from hvp_engine.errors import BlockError, ConfigurationError, NotFiniteError, OutOfMemoryError, RunFolderError
from hvp_engine.jobs.off_diagonal import Comparison
from hvp_engine.krylov.probes import probe
from hvp_engine.results.off_diagonal import OffDiagonal

PARTS = {"attention": ["layers.*.attn.*"], "embedding": ["w?e.weight"], "norms": ["ln_f.*"]}
"""Blocks that do not cover the model, of tied weights, with ragged batches and ignored tokens."""


def compared(case: Case, blocks: Any, **options: Any) -> OffDiagonal:
    return he.off_diagonal(case.model, case.loss, blocks, data=case.data, **{"progress": False, **options})


def dense_sums(case: Case, found: OffDiagonal, names: dict[str, list[str]]) -> np.ndarray:
    """What the products of the same vectors with the dense matrices give."""
    matrix = dense_hessian(case, [name for own in names.values() for name in own]).numpy()
    edges = np.cumsum([0, *found.numel.values()])
    assert edges[-1] == len(matrix)
    sums = np.zeros_like(found.sums)
    for k in range(len(sums)):
        v = probe(0, "all blocks", k, len(matrix), "gaussian", torch.float64).numpy()
        for b, rows in enumerate(map(slice, edges[:-1], edges[1:])):
            h, d = matrix[rows] @ v, matrix[rows, rows] @ v[rows]
            sums[k, b] = h @ h, d @ d, (h - d) @ (h - d), h @ d
    return sums


@pytest.mark.parametrize("kind", CASES)
def test_every_parameter_a_block_is_compared_as_the_dense_matrix_says(kind: str) -> None:
    case = CASES[kind]()
    found = compared(case, "parameter", probes=5, precision="fp64")
    names = {name: [name] for name, _ in case.model.named_parameters()}
    assert list(found) == list(names) and found.outside == 0
    wanted = dense_sums(case, found, names)
    np.testing.assert_allclose(found.sums, wanted, rtol=1e-9, atol=1e-12 * wanted.max())
    whole, diagonal, between, both = wanted.sum(axis=1).T
    assert found.ratio.value == pytest.approx(np.sqrt(between / whole).mean(), rel=1e-9)
    assert found.cosine.value == pytest.approx((both / np.sqrt(whole * diagonal)).mean(), rel=1e-9)
    assert 0.05 < found.ratio.value < 1.0 and 0.1 < found.cosine.value < 1.0


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-4)])
def test_parameters_in_no_block_do_not_enter(precision: str, tolerance: float) -> None:
    case = gpt()
    found = compared(case, PARTS, probes=6, precision=precision)
    parameters = dict(case.model.named_parameters())
    names = {
        "attention": [n for n in parameters if ".attn." in n],
        "embedding": ["wte.weight", "wpe.weight"],
        "norms": [n for n in parameters if n.startswith("ln_f.")],
    }
    wanted = dense_sums(case, found, names)
    np.testing.assert_allclose(found.sums, wanted, rtol=tolerance, atol=tolerance * wanted.max())
    inside = sum(parameters[name].numel() for own in names.values() for name in own)
    assert found.outside == sum(p.numel() for p in parameters.values()) - inside > 0
    assert f"{found.outside:,} trainable parameters are in no block" in found.summary()


def test_slices_of_one_parameter_are_blocks() -> None:
    case, weight = gpt(), "layers.0.attn.wq.weight"
    found = compared(case, he.blocks.heads(case.model, weight, 2), probes=3, precision="fp64")
    wanted = dense_sums(case, found, {"both": [weight]})
    np.testing.assert_allclose(found.sums, wanted, rtol=1e-9, atol=1e-12 * wanted.max())


def test_independent_blocks_have_nothing_between_them() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(30)), nn.Parameter(torch.full((20,), 2.0))

    found = he.off_diagonal(Apart(), lambda m: (m.a**4).sum() + (m.b**3).sum(), "parameter", progress=False)
    assert found.ratio.value <= 1e-6 and found.cosine.value == pytest.approx(1.0, abs=1e-6)
    coupled = he.off_diagonal(Apart(), lambda m: m.a.sum() * m.b.sum(), "parameter", progress=False)
    assert coupled.ratio.value == pytest.approx(1.0) and np.isnan(coupled.cosine.value)  # no block has curvature
    linear = he.off_diagonal(Apart(), lambda m: m.a.sum() + m.b.sum(), "parameter", check=False, progress=False)
    assert np.isnan(linear.ratio.value) and "–" in linear.summary()


def test_bars_narrow_with_more_vectors_and_hold_the_mean_of_many() -> None:
    case = mlp()
    many, held, widths = compared(case, "module", probes=200, precision="fp64", check=False), 0, []
    for seed in range(1, 11):
        few = compared(case, "module", probes=8, seed=seed, precision="fp64", check=False)
        held += few.cosine.low <= many.cosine.value <= few.cosine.high
        widths.append(few.cosine.high - few.cosine.low)
    assert held >= 8
    assert many.cosine.high - many.cosine.low < 0.4 * np.median(widths)
    assert np.isnan(compared(case, "module", probes=1).cosine.high)


@pytest.mark.parametrize(("stop", "memory"), [(0, None), (1, None), (2, None), (3, 120_000)])
def test_an_interrupted_job_resumes_to_the_same_bits(tmp_path: Path, stop: int, memory: int | None) -> None:
    case, options = gpt(), {"probes": 10, "memory": memory}
    wanted = compared(case, PARTS, **options)
    with interrupted_at(stop, Comparison):
        compared(case, PARTS, out=tmp_path, **options)
    resumed = compared(case, PARTS, out=tmp_path, **options)
    assert resumed.sums.tobytes() == wanted.sums.tobytes()
    assert resumed.manifest["plan"]["waves"] == 3 if memory is None else resumed.manifest["plan"]["waves"] > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "spectra.safetensors"]
    complete = compared(case, PARTS, out=tmp_path, **options)  # returned, not computed
    assert complete.sums.tobytes() == wanted.sums.tobytes() and complete.manifest == resumed.manifest


def test_a_finished_wave_is_not_multiplied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, multiplied = mlp(), []
    with interrupted_at(2, Comparison):
        compared(case, "module", probes=10, out=tmp_path)
    original = Comparison.step
    monkeypatch.setattr(Comparison, "step", lambda state: multiplied.extend(state.streams) or original(state))
    compared(case, "module", probes=10, out=tmp_path)
    assert multiplied == [("all blocks", 8), ("all blocks", 9)]


def test_a_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    case = mlp()
    compared(case, "module", probes=2, out=tmp_path)
    for options in ({"probes": 3}, {"seed": 1}, {"precision": "fp64"}):
        with pytest.raises(RunFolderError, match="holds another job"):
            compared(case, "module", out=tmp_path, **{"probes": 2, **options})
    with pytest.raises(RunFolderError, match="job: 'off diagonal' there, None here"):
        he.slq(case.model, case.loss, "module", data=case.data, steps=2, probes=2, out=tmp_path)


def test_progress_counts_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    compared(mlp(), "module", probes=9, progress=True)
    assert "off diagonal: done in" in capsys.readouterr().err


WRONG = {
    "one block": (None, "there is one, 'full': give a list"),
    "one tensor": (["0.weight"], "needs two of them at least"),
    "overlap": ({"a": ["0.*"], "b": ["4.*"], "c": ["0.weight"]}, "Blocks 'a' and 'c' overlap in parameter '0.weight'"),
    "slices": (
        [
            he.Block("top", [("0.weight", slice(0, 4))]),
            he.Block("one", [("0.weight", torch.tensor([6]))]),
            he.Block("low", [("0.weight", slice(5, 7))]),
        ],
        "Blocks 'one' and 'low' overlap in parameter '0.weight'",
    ),
    "unknown": (["0.weight", "2.wieght"], "Did you mean '2.weight'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_blocks_between_which_there_is_nothing_to_ask_are_refused(kind: str) -> None:
    blocks, words = WRONG[kind]
    with pytest.raises(BlockError, match=words):
        compared(mlp(), blocks)


def test_what_cannot_run_is_refused_in_words() -> None:
    case = mlp()
    with pytest.raises(ConfigurationError, match=r"model must be a torch\.nn\.Module"):
        he.off_diagonal(None, case.loss, "module", data=case.data)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="probes=0 must be"):
        compared(case, "module", probes=0)
    with pytest.raises(OutOfMemoryError, match="One stream of block .all blocks."):
        compared(gpt(), PARTS, memory=40_000)
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.zeros(3))})
    with pytest.raises(NotFiniteError, match="of block 'b', or of all blocks in its rows, is not finite"):
        he.off_diagonal(model, lambda m: m["a"].prod() + m["b"].abs().pow(1.5).sum(), ["a", "b"], check=False)


def test_a_block_may_have_the_name_of_the_union() -> None:
    found = compared(mlp(), {"all blocks": ["0.*"], "all blocks+": ["4.*"]}, probes=2)
    assert list(found) == ["all blocks", "all blocks+"]
