"""Calls amid settings of the process that others made: default device, gradient modes, memory that runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bad_inputs import SIZE, batch, mean_loss, net

import hvp_engine as he

JOB = (net(), mean_loss)
DATA = [batch(), batch(seed=2)]


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "another default device": lambda: default_device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_every_call_gives_what_it_gives_elsewhere(name: str, tmp_path: Any) -> None:
    vectors = {"full": torch.linspace(-1, 1, SIZE).repeat(2, 1)}
    plain = he.hvp(*JOB, vectors, data=DATA)["full"], he.slq(*JOB, data=DATA, steps=3, probes=2).manifest["config"]
    with SURROUNDINGS[name]():
        product = he.hvp(*JOB, vectors, data=DATA)["full"]
        spectra = he.slq(*JOB, data=DATA, steps=3, probes=2, out=tmp_path / "run")
        report = he.doctor(*JOB, data=DATA, seconds=0.1)
        plan = he.plan(*JOB, data=DATA, device="a100-80gb", steps=3)
    assert torch.equal(product, plain[0])
    assert spectra.manifest["config"] == plain[1]
    assert report.ok
    assert plan.job.samples == 8


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_plan_is_made_amid_anomaly_detection() -> None:
    with torch.autograd.set_detect_anomaly(True):
        assert he.plan(*JOB, data=DATA, device="a100-80gb", steps=3).job.samples == 8
        assert torch.is_anomaly_enabled()


def exhausted(model: Any, batch: Any) -> Any:
    raise MemoryError


def test_memory_that_runs_out_before_the_first_product_is_an_error_with_a_fix() -> None:
    for call in (
        lambda: he.hvp(net(), exhausted, {}, data=DATA),
        lambda: he.slq(net(), exhausted, data=DATA, steps=2, probes=1),
    ):
        with pytest.raises(he.errors.OutOfMemoryError, match="Memory ran out while .* smaller batches"):
            call()
