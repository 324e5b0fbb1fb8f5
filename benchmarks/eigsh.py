"""Top eigenpairs of one block of a million parameters: products and time of `eigsh`, SciPy's, and power iteration.

Run as ``python benchmarks/eigsh.py [--width 512] [--rounds 3]``. All reach the same residual, measured in the end:
``tolerance`` times the largest eigenvalue's magnitude. SciPy multiplies by the same operator, and gets the loosest
tolerance with which it reaches that. Products of ours are counted with those that measure the residuals and those
that look for copies; of the others without. Power iteration is stopped at ``--most`` products.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse.linalg
import torch
from baselines.power_iteration import power_iteration
from torch import Tensor

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig

_VOCABULARY, _CONTEXT, _BATCH = 256, 64, 4
_NAME = "layers.0.c_fc.weight"
_TIGHTER = 0.3  # SciPy's tolerance, where the last one did not reach the residual


class Row(NamedTuple):
    """What one method took."""

    products: int
    seconds: float
    residual: float  # largest, relative to the largest eigenvalue's magnitude


class Case:
    """A GPT, one of whose projections is the block."""

    def __init__(self, width: int, layers: int, k: int, tolerance: float) -> None:
        """Draw the model and its data."""
        torch.manual_seed(0)
        self.model = GPT(GPTConfig(_VOCABULARY, _CONTEXT, layers, 4, width)).eval()
        self.data = [torch.randint(0, _VOCABULARY, (_BATCH, _CONTEXT))]
        self.k, self.tolerance, self.products = k, tolerance, 0
        self.operator = he.HessianOperator(self.model, he.losses.causal_lm, [_NAME], data=self.data)
        self.numel = self.operator.numel[_NAME]

    def multiply(self, vector: Tensor) -> Tensor:
        """Multiply a vector, and count it."""
        self.products += 1
        return self.operator.matmat({_NAME: vector[None]})[_NAME][0]

    def ours(self) -> he.Eigenpairs:
        """Run the engine's job."""
        options: dict[str, Any] = {"k": self.k, "tolerance": self.tolerance, "check": False, "progress": False}
        return he.eigsh(self.model, he.losses.causal_lm, [_NAME], data=self.data, **options)[_NAME]

    def scipy(self, tolerance: float, dtype: type) -> tuple[Any, Any]:
        """Run SciPy's on the same operator."""

        def matvec(vector: Any) -> Any:
            flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32).reshape(-1))
            return self.multiply(flat).numpy().astype(dtype)

        matrix = scipy.sparse.linalg.LinearOperator((self.numel, self.numel), matvec=matvec, dtype=dtype)
        start = np.random.default_rng(0).standard_normal(self.numel).astype(dtype)
        return scipy.sparse.linalg.eigsh(matrix, k=self.k, which="LM", tol=tolerance, v0=start)

    def residual(self, values: Any, vectors: Any) -> float:
        """Measure the largest residual, relative to the largest value."""
        found = [
            (self.multiply(torch.from_numpy(x.astype(np.float32))) - float(value) * torch.from_numpy(x)).norm()
            for value, x in zip(values, vectors.T, strict=True)
        ]
        return float(max(found)) / float(np.abs(values).max())


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def scipy_tolerance(case: Case, pairs: he.Eigenpairs, dtype: type) -> float:
    """Find the loosest tolerance, relative to each eigenvalue, with which SciPy reaches the residual."""
    tolerance = case.tolerance * pairs.size / float(np.abs(pairs.values).min())
    while case.residual(*case.scipy(tolerance, dtype)) > case.tolerance:
        tolerance *= _TIGHTER
    return tolerance


def compare(case: Case, rounds: int, most: int) -> dict[str, Row]:
    """Run all methods in turn; power iteration, whose time is that of its products, once."""
    pairs = case.ours()
    dtypes = {"SciPy, float32": np.float32, "SciPy, float64": np.float64}
    tolerances = {name: scipy_tolerance(case, pairs, dtype) for name, dtype in dtypes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *dtypes)}
    rows: dict[str, Row] = {}
    for _ in range(rounds):
        pairs, taken = timed(case.ours)
        seconds["ours"].append(taken)
        rows["ours"] = Row(pairs.products, float(np.median(seconds["ours"])), float(pairs.residuals.max()) / pairs.size)
        for name, dtype in dtypes.items():
            case.products = 0
            found, taken = timed(lambda name=name, dtype=dtype: case.scipy(tolerances[name], dtype))  # type: ignore[misc]
            products = case.products
            seconds[name].append(taken)
            rows[name] = Row(products, float(np.median(seconds[name])), case.residual(*found))
    target = case.tolerance * pairs.size
    (values, products), taken = timed(lambda: power_iteration(case.multiply, case.numel, case.k, target, most))
    label = "power iteration" if len(values) == case.k else f"power iteration ({len(values)} of {case.k})"
    rows[label] = Row(products, taken, case.tolerance)
    return rows


def main() -> None:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512, help="of the GPT; the block has 4 width^2 parameters")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=2000)
    asked = parser.parse_args()
    case = Case(asked.width, asked.layers, asked.k, asked.tolerance)
    rows = compare(case, asked.rounds, asked.most)
    ours = rows["ours"]
    print(f"{_NAME}, {case.numel:,} parameters, top {asked.k}, residual {asked.tolerance:g} of the largest")
    for name, row in rows.items():
        ratios = f"{row.products / ours.products:6.2f} x products, {row.seconds / ours.seconds:6.2f} x time"
        print(f"{name:28} {row.products:6d} products {row.seconds:8.2f} s  residual {row.residual:.1e}  {ratios}")


if __name__ == "__main__":
    main()
