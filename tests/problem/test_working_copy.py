"""The converted copy of a model whose dtype is not that of the products."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


BATCH = (torch.linspace(-1, 1, 24).reshape(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, BATCH[0])])
def test_a_scripted_model_is_copied_apart_from_the_callers(compiled) -> None:
    vectors = {"full": torch.linspace(-1, 1, 43).repeat(2, 1)}
    right = he.hvp(net(), loss, vectors, data=[BATCH], precision="fp64")["full"]
    found = he.hvp(compiled(net()), loss, vectors, data=[BATCH], precision="fp64")["full"]
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)


def test_frozen_parameters_of_a_copy_stay_frozen() -> None:
    model = net()
    model[0].requires_grad_(False)
    found = he.hvp(model, loss, {"full": torch.ones(1, 18)}, data=[BATCH], precision="fp64")["full"]
    assert found.shape == (1, 18)


def test_complex_data_meet_a_float64_copy_in_its_own_width() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ torch.view_as_complex(self.weight)).abs()

    data = [(torch.complex(BATCH[0], BATCH[0].flip(0) + 0.5), BATCH[1])]
    vectors = {"full": torch.ones(1, 24)}
    wide = he.hvp(Complex(), loss, vectors, data=data, precision="fp64")["full"]
    torch.testing.assert_close(wide.float(), he.hvp(Complex(), loss, vectors, data=data)["full"], rtol=1e-3, atol=1e-5)
