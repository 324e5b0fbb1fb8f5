"""Which operator multiplies with which matrix, by the names that callers give."""

from __future__ import annotations

from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.empirical_fisher import EmpiricalFisherOperator, TokenEmpiricalFisherOperator
from hvp_engine.operators.fisher import FisherOperator
from hvp_engine.operators.ggn import GaussNewtonOperator, ResidualOperator
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.operator import CurvatureOperator

# A new operator is one line here.
OPERATORS: dict[str, type[CurvatureOperator]] = {
    HessianOperator.matrix: HessianOperator,
    GaussNewtonOperator.matrix: GaussNewtonOperator,
    ResidualOperator.matrix: ResidualOperator,
    FisherOperator.matrix: FisherOperator,
    EmpiricalFisherOperator.matrix: EmpiricalFisherOperator,
    TokenEmpiricalFisherOperator.matrix: TokenEmpiricalFisherOperator,
}


def operator_named(name: str) -> type[CurvatureOperator]:
    """Return the operator of a matrix.

    Raises:
        ConfigurationError: There is none of that name.
    """
    if name not in tuple(OPERATORS):
        raise ConfigurationError(f"operator={name!r} is not one of {', '.join(map(repr, OPERATORS))}.")
    return OPERATORS[name]
