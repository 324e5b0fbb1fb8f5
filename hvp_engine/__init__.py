"""Hessian-vector products, batched Lanczos and stochastic Lanczos quadrature for neural networks.

The heart is :func:`slq`, the spectra of a model's blocks. :func:`eigsh` finds eigenpairs, :func:`trace`,
:func:`diagonal` and :func:`norms` estimate numbers of blocks, :func:`gradients` measures gradients, and
:func:`off_diagonal` says how much lies between blocks. :func:`hvp` and :class:`HessianOperator` give the products
themselves, :func:`dense` whole matrices of small blocks. :func:`doctor` says whether a model is fit, :func:`plan` what
:func:`slq` will cost, :func:`data_error` how far its numbers depend on the choice of data, :func:`show_config` what
this installation runs with. :func:`merge` joins runs of the same job, :func:`compare` puts two runs side by side.

:mod:`~hvp_engine.blocks` cuts parameters into blocks, :mod:`~hvp_engine.losses` has ready losses,
:mod:`~hvp_engine.ops` twice-differentiable operations, :mod:`~hvp_engine.errors` the exceptions of all of them.
"""

from __future__ import annotations

from hvp_engine import blocks, errors, losses, ops
from hvp_engine.api import (
    compare,
    data_error,
    dense,
    diagonal,
    eigsh,
    gradients,
    hvp,
    merge,
    norms,
    off_diagonal,
    slq,
    trace,
)
from hvp_engine.blocks import Block
from hvp_engine.config import show_config
from hvp_engine.diagnosis.doctor import doctor
from hvp_engine.errors import HvpEngineError
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.planning.plan import plan
from hvp_engine.planning.report import JobPlan
from hvp_engine.results.compared import Comparison
from hvp_engine.results.diagonals import Diagonals
from hvp_engine.results.eigenpairs import Eigenpairs
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.norms import Norms
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.traces import Traces
from hvp_engine.system.versions import package_version

__version__ = package_version()

__all__ = [
    "Block",
    "Comparison",
    "Diagonals",
    "Eigenpairs",
    "Eigensystem",
    "Estimate",
    "HessianOperator",
    "HvpEngineError",
    "JobPlan",
    "Norms",
    "Spectra",
    "Spectrum",
    "Traces",
    "blocks",
    "compare",
    "data_error",
    "dense",
    "diagonal",
    "doctor",
    "eigsh",
    "errors",
    "gradients",
    "hvp",
    "losses",
    "merge",
    "norms",
    "off_diagonal",
    "ops",
    "plan",
    "show_config",
    "slq",
    "trace",
]


def __dir__() -> list[str]:
    """List the public names, for completion and ``dir()``; rooms below them can be imported, and are nobody's API."""
    return [*__all__, "__version__"]
