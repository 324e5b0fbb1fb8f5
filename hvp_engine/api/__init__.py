"""The public calls: their signatures and docstrings; jobs and operators do the work."""

from hvp_engine.api.between_blocks import off_diagonal
from hvp_engine.api.data_errors import data_error
from hvp_engine.api.eigenpairs import eigsh
from hvp_engine.api.estimators import diagonal, gradients, norms, trace
from hvp_engine.api.products import dense, hvp
from hvp_engine.api.runs import compare, merge
from hvp_engine.api.spectra import slq

__all__ = [
    "compare",
    "data_error",
    "dense",
    "diagonal",
    "eigsh",
    "gradients",
    "hvp",
    "merge",
    "norms",
    "off_diagonal",
    "slq",
    "trace",
]
