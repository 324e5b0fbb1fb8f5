"""A budget that is too small is refused before any work, with one that is not; and a job stays inside of its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import OutOfMemoryError
from hvp_engine.operators.operator import CurvatureOperator

DATA = [torch.linspace(-1, 1, 8 * 24).view(8, 24)]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 3))


def loss(network: nn.Module, batch: Tensor) -> Tensor:
    return network(batch).square().mean()


def job(memory: int) -> he.Spectra:
    return he.slq(model(), loss, data=DATA, steps=10, probes=2, memory=memory)


@pytest.mark.parametrize("memory", [1_000, 8_000, 30_000, 50_000])
def test_a_refusal_names_a_budget_that_serves_and_nothing_was_multiplied_before(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the refusal")

    tried = []
    while True:
        with monkeypatch.context() as patch, pytest.raises(OutOfMemoryError) as refused:
            patch.setattr(CurvatureOperator, "sweep", never)
            patch.setattr(CurvatureOperator, "verify", never)
            job(memory)
        found = re.search(r"raise memory= (above|to at least) ([\d,]+) bytes", str(refused.value))
        assert found, refused.value
        memory = int(found[2].replace(",", ""))
        tried.append(found[1])
        if found[1] == "to at least":
            break
    assert len(tried) <= 2  # once for the graph, once with the vectors
    assert job(memory)["full"].numel > 0
    with pytest.raises(OutOfMemoryError):
        job(memory * 9 // 10)


MEASURED = """
import torch
from torch import nn
import hvp_engine as he
from hvp_engine.system.memory import resident
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 10))
data = [torch.randn(64, 256)]
budget = 300 << 20
before = resident().now
spectra = he.slq(model, lambda network, batch: network(batch).square().mean(),
                 data=data, steps=60, probes=8, memory=budget)
print(spectra.manifest["plan"]["waves"], (resident().highest - before) / budget)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count of resident memory is read")
def test_a_job_in_waves_stays_within_its_budget_and_uses_it() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    waves, share = done.stdout.split()
    assert int(waves) > 1 and 0.5 < float(share) <= 1.0
