"""Which operations are right when several vectors pass their derivatives at once."""

from __future__ import annotations

import pytest
import torch
from batched_cases import CASES, BatchedCase, parameters_of
from torch import Tensor

from hvp_engine.operators.autograd_nodes import name_of, nodes_behind
from hvp_engine.operators.batchable import BATCHABLE


def gradients(case: BatchedCase, parameters: list[Tensor]) -> list[Tensor]:
    out = case.function(*parameters)
    curved = (out.abs() if out.is_complex() else out).mul(0.3).tanh().sum()
    found = torch.autograd.grad(curved, parameters, create_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None and gradient.requires_grad]


@pytest.fixture(scope="module")
def seen() -> set[str]:
    return {
        name_of(node)
        for case in CASES
        for shapes in case.shapes
        for node in nodes_behind(gradients(case, parameters_of(shapes)))
    }


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_several_vectors_give_what_each_gives_alone(case: BatchedCase) -> None:
    generator = torch.Generator().manual_seed(1)
    for shapes in case.shapes:
        parameters = parameters_of(shapes)
        outputs = gradients(case, parameters)
        for count in (2, 3):
            vectors = [torch.randn(count, *g.shape, dtype=g.dtype, generator=generator) for g in outputs]
            options = {"retain_graph": True, "allow_unused": True}
            together = torch.autograd.grad(outputs, parameters, vectors, is_grads_batched=True, **options)
            for index in range(count):
                alone = torch.autograd.grad(outputs, parameters, [v[index] for v in vectors], **options)
                for batched, single in zip(together, alone, strict=True):
                    if single is not None:
                        torch.testing.assert_close(batched[index], single, rtol=1e-9, atol=1e-11)


def test_every_kind_of_the_list_was_tried_here(seen: set[str]) -> None:
    untried = {kind for kind in BATCHABLE - seen if hasattr(torch._C._functions, kind)}
    assert not untried  # a kind that this PyTorch does not have needs no trial


def test_the_list_has_the_kinds_of_common_networks(seen: set[str]) -> None:
    assert len(seen & BATCHABLE) > 200
    assert "NativeGroupNormBackward0" not in BATCHABLE
