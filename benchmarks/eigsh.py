"""Top eigenpairs of blocks of a million parameters: products and time of `eigsh`, SciPy's, and power iteration.

Run as ``python benchmarks/eigsh.py [--width 512] [--rounds 3]``; a few minutes. The model is lightly trained, and its
batch is small: a product takes some tens of milliseconds, and what methods do beside products shows. All reach the same
residual, measured in the end: ``tolerance`` times the largest eigenvalue's magnitude. SciPy multiplies by
``op.scipy()`` of the same matrix, and gets the loosest tolerance with which it reaches that. It looks for no further
copies of eigenvalues; ours does, and confirms its residuals: its products are given until the pairs had converged, and
in all. Ours and SciPy's alternate; power iteration, which takes most, runs once, and is stopped at ``--most`` products:
the pairs that it has by then are given.
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

_VOCABULARY, _FOLLOWERS = 64, 4  # each token is followed by one of a few, which the model learns
_TIGHTER = 0.7  # SciPy's tolerance, where the last one did not reach the residual


class Row(NamedTuple):
    """What one method took."""

    products: int
    seconds: float
    residual: float  # largest, relative to the largest eigenvalue's magnitude


class Batches:
    """Tokens of a random Markov chain."""

    def __init__(self, samples: int, context: int) -> None:
        """Draw the chain."""
        self._generator = torch.Generator().manual_seed(1)
        self._shape = samples, context
        self._follows = torch.randint(0, _VOCABULARY, (_VOCABULARY, _FOLLOWERS), generator=self._generator)

    def draw(self) -> Tensor:
        """Return the next batch, (samples, context)."""
        samples, context = self._shape
        tokens = torch.randint(0, _VOCABULARY, (samples, context), generator=self._generator)
        which = torch.randint(0, _FOLLOWERS, (samples, context), generator=self._generator)
        for place in range(1, context):
            tokens[:, place] = self._follows[tokens[:, place - 1], which[:, place]]
        return tokens


def trained(asked: argparse.Namespace, batches: Batches) -> GPT:
    """Train a GPT for a few steps."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(_VOCABULARY, asked.context, asked.layers, 4, asked.width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(asked.steps):
        total, weight = he.losses.causal_lm(model, batches.draw())
        optimizer.zero_grad()
        (total / weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


class Case:
    """A GPT, one of whose matrices is the block."""

    def __init__(self, asked: argparse.Namespace, block: str) -> None:
        """Make the model and its data."""
        batches = Batches(asked.samples, asked.context)
        self.model, self.block = trained(asked, batches), block
        self.data = [batches.draw()]
        self.k, self.tolerance, self.products = asked.k, asked.tolerance, 0
        self.operator = he.HessianOperator(self.model, he.losses.causal_lm, [self.block], data=self.data)
        self.numel = self.operator.numel[self.block]
        self._scipy = self.operator.scipy()

    def multiply(self, vector: Tensor) -> Tensor:
        """Multiply a vector, and count it."""
        self.products += 1
        return self.operator.matmat({self.block: vector[None]})[self.block][0]

    def ours(self) -> he.Eigenpairs:
        """Run the engine's job."""
        options: dict[str, Any] = {"k": self.k, "tolerance": self.tolerance, "check": False, "progress": False}
        return he.eigsh(self.model, he.losses.causal_lm, [self.block], data=self.data, **options)[self.block]

    def scipy(self, tolerance: float) -> tuple[Any, Any]:
        """Run SciPy's on the same matrix."""

        def matvec(vector: Any) -> Any:
            self.products += 1
            return self._scipy.matvec(vector)

        matrix = scipy.sparse.linalg.LinearOperator(self._scipy.shape, matvec=matvec, dtype=self._scipy.dtype)
        start = np.random.default_rng(0).standard_normal(self.numel).astype(self._scipy.dtype)
        return scipy.sparse.linalg.eigsh(matrix, k=self.k, which="LM", tol=tolerance, v0=start)

    def residual(self, values: Any, vectors: Any) -> float:
        """Measure the largest residual, relative to the largest value."""
        rows = torch.from_numpy(np.ascontiguousarray(vectors.T))
        found = [float((self.multiply(x) - float(value) * x).norm()) for value, x in zip(values, rows, strict=True)]
        return max(found) / float(np.abs(values).max())


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def scipy_tolerance(case: Case, pairs: he.Eigenpairs) -> float:
    """Find the loosest tolerance, relative to each eigenvalue, with which SciPy reaches the residual."""
    tolerance = case.tolerance * pairs.size / float(np.abs(pairs.values).min())
    while case.residual(*case.scipy(tolerance)) > case.tolerance:
        tolerance *= _TIGHTER
    return tolerance


def compare(case: Case, rounds: int, most: int) -> tuple[he.Eigenpairs, dict[str, Row]]:
    """Run ours and SciPy's in turn, and power iteration once."""
    pairs = case.ours()
    tolerance = scipy_tolerance(case, pairs)
    ours, scipys = [], []
    products = 0
    for _ in range(rounds):
        pairs, taken = timed(case.ours)
        ours.append(taken)
        case.products = 0
        found, taken = timed(lambda: case.scipy(tolerance))
        products = case.products
        scipys.append(taken)
    mine = case.residual(pairs.values, pairs.vectors.numpy().T)  # not by ours itself
    rows = {
        "eigsh": Row(pairs.products, float(np.median(ours)), mine),
        "SciPy": Row(products, float(np.median(scipys)), case.residual(*found)),
    }
    target = case.tolerance * pairs.size
    (values, taken_by_power), taken = timed(lambda: power_iteration(case.multiply, case.numel, case.k, target, most))
    label = "power iteration" if len(values) == case.k else f"power iteration, {len(values)} of {case.k}"
    rows[label] = Row(taken_by_power, taken, case.tolerance)
    return pairs, rows


def show(asked: argparse.Namespace, block: str) -> None:
    """Print a line per method for one block."""
    case = Case(asked, block)
    pairs, rows = compare(case, asked.rounds, asked.most)
    ours = rows["eigsh"]
    print(f"{block}, {case.numel:,} parameters, top {asked.k}, residual {asked.tolerance:g} of the largest")
    print(f"eigsh had converged after {pairs.effort.until_converged} products; the others look for no copies.")
    for name, row in rows.items():
        ratios = f"{row.products / ours.products:6.2f} x products, {row.seconds / ours.seconds:6.2f} x time"
        print(f"{name:28} {row.products:6d} products {row.seconds:8.2f} s  residual {row.residual:.1e}  {ratios}")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", nargs="+", default=["layers.0.c_fc.weight", "layers.0.c_proj.weight"])
    parser.add_argument("--width", type=int, default=512, help="of the GPT; c_fc and c_proj have 4 width^2 parameters")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=2000, help="products of power iteration")
    asked = parser.parse_args()
    for block in asked.blocks:
        show(asked, block)


if __name__ == "__main__":
    main()
