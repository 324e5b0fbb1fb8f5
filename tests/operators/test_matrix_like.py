"""An operator in place of its matrix: the same products, in the form of the vectors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from problems import Case, dense_hessian, gpt, mlp
from torch import Tensor

import hvp_engine as he
from hvp_engine.errors import BlockError, ConfigurationError, HvpEngineError, NonDeterministicError

PAIR = ["4.weight", "0.weight"]


def operator(case: Case, blocks: Any = None, **options: Any) -> he.HessianOperator:
    return he.HessianOperator(case.model, case.loss, blocks, data=case.data, **{"precision": "fp64", **options})


def same(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and float((found - wanted).norm()) <= 1e-11 * float(wanted.norm())


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_vectors_and_matrices_are_multiplied_as_by_the_dense_matrix(case: Case) -> None:
    dense, op = dense_hessian(case), operator(case)
    n = len(dense)
    v, columns = random(n), random(n, 3)
    assert op.shape == (n, n) and op.dtype == torch.float64 and op.device == torch.device("cpu")
    assert same(op @ v, dense @ v) and same(op @ columns, dense @ columns)
    assert same(op.T @ v, dense @ v) and same(op.H @ columns, dense @ columns)
    assert same(v @ op, v @ dense) and same(columns.T @ op, columns.T @ dense)
    assert (op @ columns[:, :0]).shape == (n, 0) and (op @ columns).is_contiguous()
    assert abs(float(v @ op @ v - v @ dense @ v)) <= 1e-11 * n


def test_matrices_of_vectors_take_one_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    op, widths = operator(mlp()), []
    sweep = op.scheduler.sweep
    monkeypatch.setattr(op.scheduler, "sweep", lambda v: widths.append(v["full"].shape) or sweep(v))
    _ = op @ random(111, 5)
    op.scipy().matmat(random(111, 4).numpy())
    assert widths == [(5, 111), (4, 111)]


def test_arrays_give_arrays() -> None:
    case = mlp()
    dense, op, v = dense_hessian(case).numpy(), operator(case), random(111).numpy()
    v.setflags(write=False)
    backwards = random(111).numpy()[::-1]
    for given in (v, backwards, random(111, 2).numpy()):
        found = op @ given
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, dense @ given, atol=1e-12)
    np.testing.assert_allclose(v @ op, v @ dense, atol=1e-12)
    assert (operator(case, precision="fp32") @ v).dtype == np.float32
    (found,) = (operator(case, ["0.bias"]) @ {"0.bias": np.ones(7)}).values()
    assert isinstance(found, np.ndarray)


@pytest.mark.parametrize("blocks", [None, {"all": ["*"]}, ["0.weight", "4.bias"], "parameter"])
def test_tensors_by_parameter_name_come_back_by_parameter_name(blocks: Any) -> None:
    case = mlp()
    op = operator(case, blocks)
    names = [name for name, _ in case.model.named_parameters() if name in op.partition.parameters]
    given = {name: random(*p.shape) for name, p in case.model.named_parameters() if name in names}
    backwards = dict(reversed(given.items()))
    found = op @ backwards
    assert list(found) == list(backwards)
    if len(op.blocks) == 1:
        dense = dense_hessian(case, names)
        flat = torch.cat([given[name].reshape(-1) for name in names])
        assert same(torch.cat([found[name].reshape(-1) for name in names]), dense @ flat)
    for name in names if len(op.blocks) > 1 else []:
        assert found[name].shape == given[name].shape
        assert same(found[name].reshape(-1), dense_hessian(case, [name]) @ given[name].reshape(-1))


def test_blocks_may_be_given_in_different_forms_at_once() -> None:
    case = mlp()
    blocks = {"head": ["4.*"], "first": ["0.weight"], "bias": ["2.bias"]}
    dense = {"head": dense_hessian(case, ["4.weight", "4.bias"]), "first": dense_hessian(case, ["0.weight"])}
    head, first = {"4.bias": random(3), "4.weight": random(3, 6)}, random(35, 2)
    found = operator(case, blocks) @ {"first": first, "head": head}
    assert list(found) == ["first", "head"]
    assert same(found["first"], dense["first"] @ first)
    flat = torch.cat([head["4.weight"].reshape(-1), head["4.bias"]])
    assert same(torch.cat([found["head"]["4.weight"].reshape(-1), found["head"]["4.bias"]]), dense["head"] @ flat)
    alone = operator(case, {"first": ["0.weight"]})
    assert same((alone @ {"first": first})["first"], dense["first"] @ first)
    assert operator(case, blocks) @ {} == {}


def test_a_tied_parameter_may_be_given_by_any_of_its_names() -> None:
    case = gpt()
    case.model.head = torch.nn.Linear(8, 13, bias=False)
    case.model.head.weight = case.model.wte.weight
    op = operator(case, ["wte.weight"])
    v = random(13, 8)
    found = op @ {"head.weight": v}
    assert list(found) == ["head.weight"]
    assert same(found["head.weight"].reshape(-1), op @ v.reshape(-1))
    with pytest.raises(BlockError, match="'wte.weight' and 'head.weight' are those of one parameter"):
        _ = op @ {"wte.weight": v, "head.weight": v}


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, nullcontext])
def test_the_callers_modes_do_not_matter(context: Callable[[], AbstractContextManager[None]]) -> None:
    case = mlp()
    op, wanted = operator(case), dense_hessian(case)
    with context():
        v = random(111).requires_grad_(not torch.is_inference_mode_enabled())
        columns = random(3, 111).T  # not contiguous
        found, columns_found = op @ v, op @ columns
        by_name = op @ {name: torch.ones_like(p, requires_grad=True) for name, p in case.model.named_parameters()}
    assert not found.requires_grad and not found.is_inference()
    assert same(found, wanted @ v.detach()) and same(columns_found, wanted @ columns)
    assert not by_name["0.weight"].requires_grad
    assert same(op.flatten("full", by_name), wanted @ torch.ones(111, dtype=torch.float64))


def test_other_dtypes_are_converted_to_that_of_the_operator() -> None:
    case = mlp()
    op, wanted = operator(case, precision="fp32"), dense_hessian(case) @ torch.ones(111, dtype=torch.float64)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool):
        found = op @ torch.ones(111, dtype=dtype)
        assert found.dtype == torch.float32
        assert float((found.double() - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_products_belong_to_the_model_as_it_is() -> None:
    case = mlp()
    op, v = operator(case), random(111)
    before = op @ v
    with torch.no_grad():
        case.model[2].weight.mul_(1.5)
    assert same(op @ v, dense_hessian(case) @ v) and not same(op @ v, before)
    op.hold_steady()
    with torch.no_grad():
        case.model[2].weight.mul_(1.5)
    with pytest.raises(NonDeterministicError):
        _ = op @ v


V = random(111)
BAD: dict[str, tuple[Any, str]] = {
    "a number": (3.0, "must be a torch tensor or a NumPy array, not float"),
    "a list": ([1.0] * 111, "not list"),
    "too short": (V[:-1], r"must have shape \(111,\), or \(111, k\) with vectors as columns, got \(110,\)"),
    "rows": (V.expand(2, 111), r"got \(2, 111\)\. Vectors in rows .* transpose them"),
    "three dimensions": (V[:, None, None], r"got \(111, 1, 1\)"),
    "complex": (V.cfloat(), "multiply real and imaginary parts apart"),
    "complex array": (V.numpy() * 1j, "multiply real and imaginary parts apart"),
    "text": (np.array(["a"] * 111), "must be floats, not <U1"),
    "nan": (torch.where(V > 0.0, V, torch.nan), "must be finite"),
    "too large": (V * 1e300, "is not in float32"),
    "meta": (V.to("meta"), "without numbers"),
    "sparse": (V.to_sparse(), "must be a dense tensor"),
    "no name": ({3: V}, "no parameter named 3"),
    "misspelt": ({"0.wieght": V[:35].view(7, 5)}, "no parameter named '0.wieght'.*Did you mean '0.weight'"),
    "incomplete": ({"0.weight": V[:35].view(7, 5)}, "no tensor was given: 0.bias, .*give zeros"),
}


@pytest.mark.parametrize("kind", BAD)
def test_vectors_that_cannot_be_multiplied_are_refused_in_words(kind: str) -> None:
    case = mlp()
    vectors, words = BAD[kind]
    op = operator(case, precision="fp32")
    with pytest.raises(HvpEngineError, match=words):
        _ = op @ vectors
    if kind not in ("a list", "a number", "rows", "text"):  # rows are right from the left
        with pytest.raises(HvpEngineError):
            _ = vectors @ op


def test_the_fixes_that_messages_name_work() -> None:
    case = mlp()
    op, zeros = operator(case), {name: torch.zeros_like(p) for name, p in case.model.named_parameters()}
    assert same(op @ V.expand(2, 111).T, dense_hessian(case) @ V.expand(2, 111).T)
    first = op @ {**zeros, "0.weight": V[:35].view(7, 5)}
    assert same(first["4.bias"], (dense_hessian(case)[-3:, :35] @ V[:35]))


def test_a_wrong_shape_of_one_parameter_is_named() -> None:
    given = {name: p.detach() for name, p in mlp().model.named_parameters()}
    with pytest.raises(ConfigurationError, match=r"'0.weight' must have the parameter's shape \(7, 5\), got \(5, 7\)"):
        _ = operator(mlp()) @ {**given, "0.weight": given["0.weight"].T}


def test_what_needs_one_block_says_so_where_there_are_several() -> None:
    op = operator(mlp(), PAIR)
    for ask in (lambda: op @ V, lambda: op.shape, op.scipy, lambda: V @ op):
        with pytest.raises(BlockError, match="has 2 blocks, 4.weight, 0.weight: name them, or make an operator of one"):
            ask()
    with pytest.raises(BlockError, match="There is no block '0.wieght'.*Did you mean '0.weight'"):
        _ = op @ {"0.wieght": V[:35]}
    assert same((op @ {"0.weight": V[:35]})["0.weight"], operator(mlp(), ["0.weight"]) @ V[:35])  # the fixes
    for strange in ([], 3, {"0.weight": 1}, np.ones(3)):
        with pytest.raises(BlockError, match="There is no block"):
            op.scipy(strange)  # type: ignore[arg-type]
    assert op.scipy("0.weight").shape == (35, 35) and op.numel == {"4.weight": 18, "0.weight": 35}
