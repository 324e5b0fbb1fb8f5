"""Whole runs on an emulated CUDA device, with the CUDA kernels and with Triton's, against the native CPU route."""

from __future__ import annotations

import os
from contextlib import nullcontext
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from device_process import on_device
from problems import mlp, symmetric
from torch import nn

import hvp_engine as he
from hvp_engine.errors import HvpEngineError
from hvp_engine.kernels import loader
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings

pytestmark = pytest.mark.usefixtures("emulated_device")

BACKENDS = ["cuda", "triton"]
STEPS = 9  # the host synchronises after 8 of them
PROBES = {"cuda": 2, "triton": 1}  # the interpreter is slow
# "ghostly" ends by breakdown after 3 steps, "short" at its length, between two synchronisations.
EIGENVALUES = {
    "long": torch.linspace(-1, 4, 130),
    "ghostly": torch.tensor([0.5, 1.0, 5.0]).repeat_interleave(7),
    "short": torch.tensor([1.0, 2.0]),
}


def matrix(name):
    """Dense but for the block that breaks down: in fp64 the rounding of a dense matrix splits its eigenvalues."""
    return EIGENVALUES[name].double().diag() if name == "ghostly" else symmetric(EIGENVALUES[name])


class Blocks(nn.Module):
    """Parameters whose Hessian blocks are known matrices."""

    def __init__(self) -> None:
        super().__init__()
        for name, eigenvalues in EIGENVALUES.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(len(eigenvalues), dtype=torch.float64)))
            self.register_buffer(f"{name}_matrix", matrix(name))

    def loss(self) -> torch.Tensor:
        pairs = ((getattr(self, name), getattr(self, f"{name}_matrix")) for name in EIGENVALUES)
        return sum(0.5 * (w @ (a @ w)) for w, a in pairs)


def solve(backend, **options):
    """Spectra by a backend: on the CPU by "native", on the device by the others."""
    from emulated_device import interpreted_triton

    device = "cpu" if backend == "native" else "cuda"
    model = Blocks().to(device, torch.float64 if options.get("precision") == "fp64" else torch.float32)
    settings = {"steps": STEPS, "check": False, "progress": False, **options}
    triton = interpreted_triton() if backend == "triton" else nullcontext([None])
    with patch.dict(os.environ, HVP_ENGINE_BACKEND=backend), triton as launches:
        found = he.slq(model, Blocks.loss, "parameter", **settings)
    assert launches, "no kernel of Triton was launched"
    if backend == "cuda":
        assert loader.native.last_stream() != 0
    return found


def differences(found, wanted):
    """Largest differences of the nodes, relative to the largest node, and of the first three moments."""
    worst = 0.0
    for name, spectrum in wanted.items():
        scale, mine = np.abs(spectrum.nodes).max(), found[name]
        assert mine.steps.tolist() == spectrum.steps.tolist()
        worst = max(worst, np.abs(mine.nodes - spectrum.nodes).max() / scale)
        for power in range(3):
            moments = [(s.weights * (s.nodes / scale) ** power).sum(axis=1) for s in (mine, spectrum)]
            worst = max(worst, np.abs(moments[0] - moments[1]).max())
    return worst


@pytest.mark.parametrize(
    ("backend", "options", "tolerance"),
    [
        ("cuda", {"precision": "fp64"}, 1e-11),
        ("triton", {"precision": "fp64"}, 1e-11),
        ("cuda", {}, 1e-5),
        ("cuda", {"basis": "bf16"}, 1e-5),
        ("triton", {"reorthogonalize": "none", "steps": 3}, 1e-5),
    ],
    ids=["cuda-fp64", "triton-fp64", "cuda-fp32", "cuda-bf16", "triton-window"],
)
@on_device
def test_slq_agrees_with_the_cpu(backend, options, tolerance):
    options = {"probes": PROBES[backend], **options}
    found, wanted = solve(backend, **options), solve("native", **options)
    assert differences(found, wanted) <= tolerance
    assert found["ghostly"].steps.tolist() == [3] * PROBES[backend]
    assert found["short"].steps.tolist() == [2] * PROBES[backend]


@pytest.mark.parametrize("backend", BACKENDS)
@on_device
def test_the_quadrature_of_a_job_runs_on_its_device_where_that_has_kernels_of_it(backend):
    def solved(calls):
        with patch.object(loader.native, "cuda_tridiagonal_quadrature", Mock(side_effect=calls)) as launched:
            found = solve(backend, reorthogonalize="none", steps=2, probes=1)
        return found, [call.args[:2] for call in launched.call_args_list]

    found, launched = solved(loader.native.cuda_tridiagonal_quadrature)
    assert launched == {"cuda": [(1, 2)] * len(EIGENVALUES), "triton": []}[backend]
    assert differences(found, solve("native", reorthogonalize="none", steps=2, probes=1)) <= 1e-5
    if launched:  # and its results are those that count
        with pytest.raises(HvpEngineError, match="could not be launched"):
            solved(RuntimeError("the card is lost"))


@on_device
def test_waves_change_nothing():
    together = solve("cuda", precision="fp64", probes=6)
    apart = solve("cuda", precision="fp64", probes=6, memory=330_000)
    assert apart.manifest["plan"]["waves"] > 1
    assert differences(apart, together) <= 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@on_device
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(backend, tmp_path):
    options = {"basis": "bf16" if backend == "cuda" else "fp32", "probes": PROBES[backend]}
    whole = solve(backend, **options)
    assert differences(whole, solve("native", **options)) <= 1e-5
    step = BatchedLanczos.step

    def fails_after_eight(self):
        if self.position == 8:
            raise KeyboardInterrupt
        return step(self)

    with (
        patch.object(BatchedLanczos, "step", fails_after_eight),
        pytest.raises(KeyboardInterrupt),
    ):
        solve(backend, **options, out=tmp_path)
    resumed = []

    def counted(self):
        resumed.append(self.position)
        return step(self)

    with patch.object(BatchedLanczos, "step", counted):
        found = solve(backend, **options, out=tmp_path)
    assert resumed == [8]
    for name, spectrum in whole.items():
        assert np.array_equal(found[name].nodes, spectrum.nodes)
        assert np.array_equal(found[name].weights, spectrum.weights)


@pytest.mark.parametrize("backend", BACKENDS)
@on_device
def test_the_host_does_not_wait_between_two_synchronisations(backend):
    from emulated_device import interpreted_triton

    device = torch.device("cuda", 0)
    matrices = {name: matrix(name).float().to(device) for name in EIGENVALUES}
    starts = {
        b: {k: probe(0, b, k, len(m), "gaussian", torch.float32) for k in range(PROBES[backend])}
        for b, m in matrices.items()
    }
    settings = LanczosSettings(STEPS, "full", Storage(torch.float32))
    triton = interpreted_triton() if backend == "triton" else nullcontext()
    with patch.dict(os.environ, HVP_ENGINE_BACKEND=backend), triton:
        lanczos = BatchedLanczos(
            lambda vectors: {b: v @ matrices[b] for b, v in vectors.items()}, starts, settings, torch.float32, device
        )
        waits = []
        while not lanczos.finished:
            torch.cuda.set_sync_debug_mode("error")
            try:
                lanczos.step()
            except RuntimeError as error:
                assert "synchronizing" in str(error)
                waits.append(lanczos.position)
                break
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert waits == [7]


@on_device
def test_a_network_has_the_spectrum_that_it_has_on_the_cpu():
    """The whole chain with a gradient graph on the device, ragged batches and the checks before a run."""

    def run(backend, device):
        case = mlp()
        model, blocks = case.model.to(device), {"first": ["0.*"], "last": ["4.weight"]}
        options = {"steps": 4, "probes": 2, "progress": False}
        with patch.dict(os.environ, HVP_ENGINE_BACKEND=backend):
            return he.slq(model, case.loss, blocks, data=case.data, **options)

    found, wanted = run("cuda", "cuda"), run("native", "cpu")
    assert differences(found, wanted) <= 1e-5
