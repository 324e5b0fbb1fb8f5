import pytest
import torch

from hvp_engine.ops.grouped_mm import grouped_mm_ref
from hvp_engine.ops.swap import twice_differentiable
from hvp_engine.system.torch_private import GROUPED_PRODUCTS

ENDS = [2, 2, 5]


def operands(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((6, 8), (3, 8, 16))]


def test_every_group_of_rows_meets_its_own_matrix():
    a, b = operands(torch.float64)
    expected = torch.cat((a[:2] @ b[0], a[2:5] @ b[2], torch.zeros(1, 16, dtype=torch.float64)))
    torch.testing.assert_close(grouped_mm_ref(a, b, ENDS), expected)


@pytest.mark.parametrize("product", GROUPED_PRODUCTS)
def test_float64_is_served_and_float32_stays_with_pytorch(product):
    offsets = torch.tensor(ENDS, dtype=torch.int32)
    a, b = operands(torch.float32)
    with twice_differentiable() as mode:
        assert torch.equal(product(a, b, offs=offsets)[:5], product(a, b, offs=offsets)[:5])
        assert "grouped_mm" not in mode.replaced
        wide = product(a.double(), b.double(), offs=offsets)
        assert mode.replaced["grouped_mm"] == 1
    torch.testing.assert_close(wide[:5].float(), product(a, b, offs=offsets)[:5])


@pytest.mark.parametrize("product", GROUPED_PRODUCTS)
def test_both_derivatives_in_float64_are_right(product):
    offsets = torch.tensor([2, 2, 6], dtype=torch.int32)

    def function(a, b):
        with twice_differentiable():
            return product(a, b, offs=offsets).sin()

    inputs = [t[..., :3].requires_grad_() for t in operands(torch.float64)]
    a, b = inputs[0], inputs[1][:, :3]
    assert torch.autograd.gradcheck(function, (a, b))
    assert torch.autograd.gradgradcheck(function, (a, b))
