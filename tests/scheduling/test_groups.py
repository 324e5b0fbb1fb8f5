"""Where data are cut into groups, and that products of groups add up to those of all the data."""

from __future__ import annotations

import pytest
import torch
from problems import mlp

from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.scheduling.groups import Groups, of_samples, of_whole_batches


def test_samples_are_shared_out_evenly_over_ragged_batches() -> None:
    groups = of_samples([5, 2, 4], 4)
    assert groups == Groups(((0, 0), (0, 2), (1, 0), (2, 1)), (2, 3, 3, 3))
    assert groups.cuts(0) == (2,) and groups.cuts(1) == () and groups.cuts(2) == (1,)
    assert [groups.of(key) for key in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 3))] == [0, 0, 1, 2, 2, 3, 3]


def test_there_are_no_more_groups_than_samples() -> None:
    assert of_samples([1, 1, 1], 8) == Groups(((0, 0), (1, 0), (2, 0)), (1, 1, 1))


@pytest.mark.parametrize(
    ("sizes", "count", "starts", "samples"),
    [
        ([4, 4, 4, 4], 2, (0, 2), (8, 8)),
        ([4, None, 4, 4], 2, (0, 2), (2, 2)),
        ([1] * 9, 8, (0, 1, 2, 3, 4, 6, 7, 8), (1, 1, 1, 1, 2, 1, 1, 1)),
        ([1000, 1], 8, (0, 1), (1000, 1)),
        ([3], 8, (0,), (3,)),
    ],
)
def test_whole_batches_are_shared_out_by_their_middles(
    sizes: list[int | None], count: int, starts: tuple[int, ...], samples: tuple[int, ...]
) -> None:
    groups = of_whole_batches(sizes, count)
    assert tuple(batch for batch, sample in groups.starts if sample == 0) == starts
    assert groups.samples == samples


@pytest.mark.parametrize("microbatch", [None, 1, 2])
def test_products_of_groups_add_up_to_those_of_the_data(microbatch: int | None) -> None:
    case = mlp()
    operator = HessianOperator(case.model, case.loss, data=case.data, precision="fp64", microbatch=microbatch)
    vectors = {"full": torch.randn(2, operator.numel["full"], dtype=torch.float64)}
    whole = operator.sweep(vectors)["full"]
    operator.scheduler.divide(of_samples([5, 2, 4], 4), 3)
    products, weights = operator.sweep_apart([vectors] * 4, lambda group: group)
    assert weights == [2.0, 3.0, 3.0, 3.0]
    torch.testing.assert_close(sum(found["full"] for found in products) / 11.0, whole)
    first = HessianOperator(case.model, case.loss, data=[tuple(t[:2] for t in case.data[0])], precision="fp64")
    torch.testing.assert_close(products[0]["full"] / 2.0, first.sweep(vectors)["full"])
    torch.testing.assert_close(operator.sweep(vectors)["full"], whole)


def test_parts_of_several_groups_may_have_vectors_of_their_own() -> None:
    case = mlp()
    operator = HessianOperator(case.model, case.loss, data=case.data, precision="fp64")
    one, other = torch.randn(2, 1, operator.numel["full"], dtype=torch.float64)
    operator.scheduler.divide(of_samples([5, 2, 4], 4), 3)
    (first, second), weights = operator.sweep_apart([{"full": one}, {"full": other}], lambda group: group % 2)
    apart, _ = operator.sweep_apart([{"full": torch.cat([one, other])}] * 4, lambda group: group)
    assert weights == [5.0, 6.0]
    torch.testing.assert_close(first["full"][0], apart[0]["full"][0] + apart[2]["full"][0])
    torch.testing.assert_close(second["full"][0], apart[1]["full"][1] + apart[3]["full"][1])


def test_data_that_were_not_divided_have_no_parts() -> None:
    case = mlp()
    operator = HessianOperator(case.model, case.loss, data=case.data)
    with pytest.raises(ConfigurationError, match="divide the data before"):
        operator.sweep_apart([{}], lambda group: group)
