"""Whole matrices of blocks against dense float64 matrices."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import Case, dense_hessian, gpt, mlp, quadratic, symmetric
from torch import Tensor

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, NotFiniteError, OutOfMemoryError, SecondDerivativeError
from hvp_engine.krylov.companions import COLUMNS_AT_ONCE
from hvp_engine.operators.dense import DenseBlocks, make_symmetric

# Tied weights, ragged batches and ignored tokens; sizes around the width of a slab.
GPT_BLOCKS = {"wte": ["wte.weight"], "norms": ["ln_f.*", "layers.*.ln_*"], "wq": ["layers.0.attn.wq.weight"]}


def dense(case: Case, blocks: Any = None, **options: Any) -> DenseBlocks:
    return he.dense(case.model, case.loss, blocks, data=case.data, progress=False, **options)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])
@pytest.mark.parametrize("microbatch", [None, 1])
def test_matrices_are_the_dense_hessians_of_the_blocks(
    precision: Any, tolerance: float, microbatch: int | None
) -> None:
    case = gpt()
    found = dense(case, GPT_BLOCKS, precision=precision, microbatch=microbatch)
    assert list(found) == list(GPT_BLOCKS)
    norms = [n for n, _ in case.model.named_parameters() if "ln_" in n]
    for block, names in (("wte", ["wte.weight"]), ("norms", norms), ("wq", ["layers.0.attn.wq.weight"])):
        matrix = found[block]
        assert matrix.dtype == (torch.float64 if precision == "fp64" else torch.float32)
        assert error(matrix, dense_hessian(case, names)) <= tolerance
        assert torch.equal(matrix, matrix.T) and not matrix.requires_grad
        assert 0.0 < found.asymmetry[block] <= tolerance


def test_the_whole_model_is_one_block(case: Case) -> None:
    found = dense(case, {"all": ["0.*"]} if case.data[0][0].dim() == 4 else None)
    (name,) = found
    names = [n for n, _ in case.model.named_parameters() if name == "full" or n.startswith("0.")]
    assert error(found[name], dense_hessian(case, names)) <= 1e-12


@pytest.mark.parametrize("size", [1, 2, COLUMNS_AT_ONCE, COLUMNS_AT_ONCE + 1])
def test_every_column_is_there_whatever_the_width_of_a_slab(size: int) -> None:
    problem = quadratic(symmetric(torch.linspace(-1.0, 2.0, size)))
    found = he.dense(problem.model, problem.loss, progress=False)["full"]
    torch.testing.assert_close(found, problem.matrix, rtol=1e-12, atol=1e-12)


def test_a_callers_inference_mode_does_not_matter() -> None:
    case = mlp()
    with torch.inference_mode():
        found = dense(case, ["4.weight"])["4.weight"]
    assert not found.is_inference() and error(found, dense_hessian(mlp(), ["4.weight"])) <= 1e-12


@pytest.mark.parametrize("size", [1, 7, 1023, 1025])
def test_the_symmetric_part_is_exact_and_the_rest_is_measured(size: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part, rest = (matrix + matrix.T) / 2, (matrix - matrix.T) / 2
    wanted = float(rest.norm() * 2**0.5 / matrix.norm())
    found = make_symmetric(matrix)
    assert torch.equal(matrix, part) and found == pytest.approx(wanted, rel=1e-12)
    assert make_symmetric(torch.zeros(size, size)) == 0.0


def test_what_the_products_lack_of_symmetry_is_said_where_nothing_was_tested() -> None:
    class Forgets(torch.autograd.Function):
        """A square whose backward pass keeps a factor out of the graph."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x[:2].square().sum() * x[2:].sum()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            first = 2.0 * x[:2] * x[2:].detach().sum()
            return gradient * torch.cat([first, x[:2].square().sum().expand(len(x) - 2)])

    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))})
    with pytest.raises(SecondDerivativeError):
        he.dense(model, lambda m: Forgets.apply(m["w"]), progress=False)
    assert he.dense(model, lambda m: Forgets.apply(m["w"]), check=False, progress=False).asymmetry["full"] > 0.1


def test_blocks_that_do_not_fit_are_refused_with_the_size_that_does() -> None:
    case, memory = mlp(), 400_000
    with pytest.raises(OutOfMemoryError) as refusal:
        he.dense(_wide(400), case.loss, data=case.data, memory=memory)
    words = re.fullmatch(
        r"The matrix of a block of 3,603 parameters would need 100 MiB in float64; .* are left beside the gradient "
        r"graph, enough for one block of (\d+) parameters\. Take smaller or fewer blocks, precision='fp32', raise "
        r"memory=, or ask for what needs no matrix: slq, or operator @ v\.",
        str(refusal.value),
    )
    assert words is not None
    fits = int(words[1])
    assert 120 < fits < 250
    weight = [("0.weight", torch.arange(fits // 5))]
    rows = [he.Block("rows", weight)]  # the fix
    found = he.dense(_wide(400), case.loss, rows, data=case.data, memory=memory, progress=False)
    assert found["rows"].shape == (fits // 5 * 5,) * 2
    with pytest.raises(OutOfMemoryError, match="The matrices of 3 blocks, the largest of 2,000 parameters, would"):
        he.dense(_wide(400), case.loss, ["0.weight", "0.bias", "2.bias"], data=case.data, memory=memory)


def _wide(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))


def test_wrong_settings_and_products_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="operator='hesian' is not one of"):
        dense(mlp(), operator="hesian")
    with pytest.raises(ConfigurationError, match="precision"):
        dense(mlp(), precision="fp16")
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(3))})
    with pytest.raises(NotFiniteError, match="of block 'full', in w, is not finite"):
        he.dense(model, lambda m: m["w"].abs().pow(1.5).sum(), check=False, progress=False)


def test_progress_counts_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    case = mlp()
    he.dense(case.model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), ["4.weight"], data=case.data, progress=True)
    assert re.search(r"dense: done in ", capsys.readouterr().err)
