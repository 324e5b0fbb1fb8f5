"""The relative error of one product: measured by the check before a job, or what rounding makes likely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import Case, gpt, mlp
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.operators.verification import product_noise

UNITS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}


def spectra(case: Case, **options: Any) -> he.Spectra:
    return he.slq(case.model, case.loss, "parameter", data=case.data, steps=3, probes=1, **options)


def true_noise(case: Case, precision: Any) -> float:
    """Relative error of a product with the whole Hessian, on all data."""
    vector = torch.randn(1, sum(p.numel() for p in case.model.parameters()), generator=torch.Generator().manual_seed(3))
    exact, found = (
        he.HessianOperator(case.model, case.loss, None, data=case.data, precision=p).matmat({"full": vector.to(dtype)})
        for p, dtype in (("fp64", torch.float64), (precision, torch.float32))
    )
    return float((found["full"].double() - exact["full"]).norm() / exact["full"].norm())


@pytest.mark.parametrize("make", [mlp, gpt])
@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 1e-3, 5e-2), ("fp32", 1e-8, 3e-6)])
def test_the_noise_of_products_is_measured_and_kept_with_every_spectrum(
    make: Any, precision: str, least: float, most: float
) -> None:
    found = spectra(make(), precision=precision)
    noise = found.manifest["verification"]["noise"]
    assert least < noise < most
    assert {spectrum.noise for spectrum in found.values()} == {noise}
    assert 0.25 < noise / true_noise(make(), precision) < 4.0


def test_float64_has_nothing_wider_to_be_compared_with() -> None:
    assert spectra(mlp(), precision="fp64")["0.weight"].noise == 4 * UNITS["fp64"]


@pytest.mark.parametrize("precision", UNITS)
def test_without_the_check_products_have_the_noise_that_rounding_makes_likely(precision: Any) -> None:
    found = spectra(mlp(), precision=precision, check=False)
    assert found.manifest["verification"] is None
    assert found["0.weight"].noise == 4 * UNITS[precision]
    assert product_noise({"asymmetry": 0.0}, precision) == 4 * UNITS[precision]  # tested by an earlier version
    assert product_noise({"noise": 0.01}, precision) == 0.01


class Coarse(nn.Module):
    """A network that computes its first layer in some dtype whatever it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype = dtype
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.linear(inputs.to(self.dtype), self.first.weight.to(self.dtype))
        found: Tensor = self.second(torch.tanh(hidden.to(self.second.weight.dtype)))
        return found


def test_what_a_model_rounds_whatever_it_is_given_counts_although_no_comparison_shows_it() -> None:
    case = Case(Coarse(torch.bfloat16), mlp().loss, [(torch.randn(4, 5), torch.tensor([0, 1, 2, 1]))])
    assert spectra(case)["first.weight"].noise == 4 * UNITS["bf16"]
    case.model = Coarse(torch.float32)
    assert spectra(case, precision="fp64")["first.weight"].noise == 4 * UNITS["fp32"]


def test_a_model_that_runs_in_no_wider_arithmetic_has_the_noise_that_rounding_makes_likely() -> None:
    class Narrow(Coarse):
        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.dtype == torch.float64:
                raise RuntimeError("float32 only")
            return super().forward(inputs)

    case = Case(Narrow(torch.float32), mlp().loss, [(torch.randn(4, 5), torch.tensor([0, 1, 2, 1]))])
    assert spectra(case, precision="bf16")["first.weight"].noise == 4 * UNITS["bf16"]
