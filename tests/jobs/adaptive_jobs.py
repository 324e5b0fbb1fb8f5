"""Small adaptive jobs for tests: their model, the products that they take, and rules in place of the real one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import Case
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.krylov.stopping import Targets, Verdict
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.coefficients import Coefficients

NAMES = ["0.weight", "0.bias", "2.weight", "4.weight"]  # of 320, 20, 440 and 66 parameters


def case() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 22), nn.Tanh(), nn.Linear(22, 3))
    data = [(torch.randn(n, 16), torch.randint(0, 3, (n,))) for n in (9, 7)]
    return Case(model, he.losses.classification, data)


class Counts:
    """Products by block, of every sweep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sweeps: list[dict[str, int]] = []
        original = CurvatureOperator.sweep

        def sweep(operator: CurvatureOperator, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            self.sweeps.append({name: len(block) for name, block in vectors.items()})
            return original(operator, vectors)

        monkeypatch.setattr(CurvatureOperator, "sweep", sweep)

    def of(self, block: str) -> int:
        return sum(sweep.get(block, 0) for sweep in self.sweeps)


def job(out: Path | None = None, **options: Any) -> he.Spectra:
    given = case()
    defaults = {"tolerance": 0.3, "check": False, "head_curvature": False}
    return he.slq(given.model, given.loss, NAMES, data=given.data, out=out, **{**defaults, **options})


def rule(needs: Mapping[str, tuple[int, int]]) -> Callable[..., dict[str, Verdict]]:
    """Make a rule that gives each block so many steps and probes."""

    def judge(
        blocks: Mapping[str, Coefficients], targets: Targets, singles: Any, *, asked: Collection[str], **_: Any
    ) -> dict[str, Verdict]:
        found = {}
        for block in asked:
            there, (steps, probes) = blocks[block], needs[block]
            suffice = int(there.steps.min()) >= steps
            reached = suffice and there.probes >= probes
            found[block] = Verdict(reached, suffice, max(probes, there.probes), 0, {"w1": 0.1 if reached else 0.5})
        return found

    return judge


def same(found: he.Spectra, wanted: he.Spectra) -> None:
    assert list(found) == list(wanted)
    for name, spectrum in wanted.items():
        for key in ("alphas", "betas", "nodes", "weights", "steps", "residuals", "singles"):
            assert np.array_equal(getattr(found[name], key), getattr(spectrum, key)), (name, key)
        assert (found[name].deflated, found[name].noise) == (spectrum.deflated, spectrum.noise)
    assert found.manifest["adaptive"] == wanted.manifest["adaptive"]
