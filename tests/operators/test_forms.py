"""From tensors of parameters to flat vectors of blocks and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import dense_hessian, gpt, mlp
from torch import Tensor

import hvp_engine as he
from hvp_engine.errors import BlockError, ConfigurationError

WEIGHT = "layers.0.attn.wq.weight"
SLICES = {
    "rows": [(WEIGHT, slice(2, 6))],
    "corner": [(WEIGHT, (slice(0, 4, 2), slice(1, 5)))],
    "picked": [(WEIGHT, torch.tensor([6, 0, 3]))],
    "two pieces": [(WEIGHT, slice(0, 1)), (WEIGHT, slice(5, 7))],
    "mixed": [("ln_f.weight", None), (WEIGHT, slice(3, 4))],
}


def sliced(block: str, **options: Any) -> he.HessianOperator:
    case = gpt()
    return he.HessianOperator(case.model, case.loss, [he.Block(block, SLICES[block])], data=case.data, **options)


def tensors(op: he.HessianOperator) -> dict[str, Tensor]:
    parameters = dict(op.objective.model.named_parameters())
    return {name: torch.randn_like(parameters[name]).double() for name in op.partition.parameters}


@pytest.mark.parametrize("block", SLICES)
def test_what_is_outside_a_slice_does_not_enter_and_is_zero(block: str) -> None:
    op = sliced(block, precision="fp64")
    given = tensors(op)
    flat = op.flatten(block, given)
    pieces = [given[name] if index is None else given[name][index] for name, index in SLICES[block]]
    assert torch.equal(flat, torch.cat([piece.reshape(-1) for piece in pieces]))
    spread = op.unflatten(block, flat)
    for name, index in SLICES[block]:
        where = ... if index is None else index
        assert torch.equal(spread[name][where], given[name][where])
    assert sum(int(t.count_nonzero()) for t in spread.values()) == op.numel[block]
    assert torch.equal(op.flatten(block, spread), flat)
    product = op @ given
    assert list(product) == list(given) and all(product[name].shape == given[name].shape for name in given)
    assert torch.equal(op.flatten(block, product), op @ flat)


def test_the_order_of_a_flat_vector_is_that_of_the_block_whatever_the_mappings() -> None:
    case = mlp()
    op = he.HessianOperator(case.model, case.loss, data=case.data, precision="fp64")
    given = {name: p.detach() for name, p in reversed(list(case.model.named_parameters()))}
    flat = op.flatten("full", given)
    assert flat.dtype == torch.float64
    assert torch.equal(flat, torch.nn.utils.parameters_to_vector(case.model.parameters()).double())
    wanted = dense_hessian(case) @ flat
    assert float((op @ flat - wanted).norm()) <= 1e-12 * float(wanted.norm())
    back = op.unflatten("full", flat)
    assert list(back) == [name for name, _ in case.model.named_parameters()]
    back["0.weight"].zero_()
    assert flat[0] != 0.0  # new tensors, not views


def test_a_scalar_parameter_has_no_dimension() -> None:
    model = torch.nn.ParameterDict({"scale": torch.nn.Parameter(torch.tensor(0.7))})
    op = he.HessianOperator(model, lambda m: m["scale"] ** 3, precision="fp64")
    found = op @ {"scale": torch.tensor(2.0)}
    assert found["scale"].shape == () and abs(float(found["scale"]) - 6 * 0.7 * 2.0) < 1e-6
    assert (op @ torch.tensor(2.0)).shape == () and (op @ torch.ones(1)).shape == (1,)


def test_flat_vectors_of_another_length_are_refused() -> None:
    op = sliced("rows")
    for flat in (torch.zeros(31), torch.zeros(32, 1), torch.zeros(4, 8)):
        with pytest.raises(ConfigurationError, match=r"must have shape \(32,\)"):
            op.unflatten("rows", flat)
    with pytest.raises(BlockError, match="There is no block 'row'.*Did you mean 'rows'"):
        op.unflatten("row", torch.zeros(32))
    with pytest.raises(ConfigurationError, match=r"must have the parameter's shape \(8, 8\), got \(4, 8\)"):
        op.flatten("rows", {WEIGHT: torch.zeros(4, 8)})
    with pytest.raises(ConfigurationError, match="must be a mapping of parameter names to tensors, not Tensor"):
        op.flatten("rows", torch.zeros(32))  # type: ignore[arg-type]
    with pytest.raises(BlockError, match="it has layers.0.attn.wq.weight"):
        op.flatten("rows", {"ln_f.weight": torch.zeros(8)})
