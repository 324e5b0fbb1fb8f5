"""Ceilings of devices, from data sheets for GPUs, measured for the CPU at hand, and what operations reach of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.planning.efficiencies import AMPERE, HOPPER, PLAIN_GPU, Efficiencies, uniform
from hvp_engine.planning.measured import measured
from hvp_engine.planning.meter import Operation
from hvp_engine.planning.shapes import NATIVE, Backends
from hvp_engine.problem.precision import Precision, product_dtype

_ASIDE = 0.5 * 2**30  # context and libraries of a CUDA process


class Bound(NamedTuple):
    """What an operation waits for.

    Attributes:
        seconds: Time on the device.
        limit: The ceiling that it touches there: ``"compute"`` or ``"bandwidth"``.
        host: Seconds that the host takes to start it.
    """

    seconds: float
    limit: str
    host: float


@dataclass(frozen=True)
class Device:
    """What a device can do at most, and the shares of it that real kernels reach.

    Attributes:
        name: Name for people and JSON.
        memory: Bytes; 0 where it has to be asked (the CPU at hand).
        bandwidth: Bytes per second.
        peak: FLOP per second of matrix products by precision; what is absent the device cannot do.
        efficiencies: Shares of both that operations reach, and what their launches cost the host.
        asynchronous: Whether the host goes on while the device computes.
        measured: Whether the ceilings were measured, not read.
        has_kernels: Whether this package's operations have kernels there.
        reads: Bytes per second at which Lanczos vectors come from where they are kept, if not in the device's memory:
            what PCIe 4.0 with 16 lanes and a disk of flash memory commonly reach; not measured here.
        link: Bytes per second that a process sends to others on devices of the same kind, and gets, at the same time:
            for GPUs what NVLink of their generation commonly reaches, else a fast Ethernet; not measured here.
    """

    name: str
    memory: int
    bandwidth: float
    peak: Mapping[Precision, float]
    efficiencies: Efficiencies
    asynchronous: bool = True
    measured: bool = False
    has_kernels: bool = True
    reads: Mapping[Elsewhere, float] = field(default_factory=lambda: {"host memory": 22e9, "disk": 2e9})
    link: float = 1e9

    def supports(self, precision: Precision) -> bool:
        """Say whether the device has this arithmetic."""
        return precision in self.peak

    def backends(self, precision: Precision) -> Backends:
        """Say whose kernels a job in this precision runs on."""
        if not self.asynchronous:
            return NATIVE
        attention = "triton" if self.has_kernels and precision != "fp64" else None
        return Backends(attention, others=self.has_kernels)

    def room(self, parameters: int) -> int:
        """Return the bytes free beside the model's parameters; the engine takes a share of these."""
        return max(0, self.memory - parameters - int(_ASIDE))

    def bound(self, operation: Operation, precision: Precision) -> Bound:
        """Return what one operation waits for.

        Args:
            operation: Its work.
            precision: Arithmetic of products.
        """
        flop, size, family, launches = operation
        compute = flop / (self.peak[precision] * self.efficiencies.of_product(family, precision))
        moving = size / (self.bandwidth * self.efficiencies.of_bandwidth(family))
        limit = "compute" if compute >= moving else "bandwidth"
        return Bound(max(compute, moving), limit, self.efficiencies.host(family, launches))

    def ideal(self) -> Device:
        """Return the device on which every operation reaches a ceiling and no launch takes time."""
        return replace(self, efficiencies=uniform(dict.fromkeys(self.peak, 1.0), 1.0, 0.0, "ideal"))


_GIB = 2**30


def _gpu(name: str, gib: int, bandwidth: float, peak: Mapping[Precision, float], efficiencies: Efficiencies) -> Device:
    tera = {precision: rate * 1e12 for precision, rate in peak.items()}
    kernels, link = efficiencies is not PLAIN_GPU, _LINKS[name.partition("-")[0]]
    return Device(name, gib * _GIB, bandwidth * 1e12, tera, efficiencies, has_kernels=kernels, link=link)


_LINKS = {"v100": 100e9, "a100": 230e9, "h100": 360e9}
_A100: Mapping[Precision, float] = {"fp64": 19.5, "fp32": 19.5, "tf32": 156, "bf16": 312}
# V100's tensor cores take fp16 alone (125 TFLOP/s), which is no precision of the engine: its range ends at 65,504.
_V100: Mapping[Precision, float] = {"fp64": 7.8, "fp32": 15.7}
_H100: Mapping[Precision, float] = {"fp64": 67, "fp32": 67, "tf32": 494, "bf16": 990}
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-80gb", 80, 2.0, _A100, AMPERE),
        _gpu("a100-40gb", 40, 1.555, _A100, AMPERE),
        _gpu("v100-32gb", 32, 0.9, _V100, PLAIN_GPU),
        _gpu("v100-16gb", 16, 0.9, _V100, PLAIN_GPU),
        _gpu("h100-80gb", 80, 3.35, _H100, HOPPER),
    )
}
NAMES = ("cpu", *GPUS)


def gpu(name: str) -> Device:
    """Look a GPU up, with what was measured on one like it in place of estimates.

    Raises:
        ConfigurationError: It is not in the table, or the file of measurements cannot be read.
    """
    if not isinstance(name, str) or name not in GPUS:
        raise ConfigurationError(f"device={name!r} is not one of {', '.join(NAMES)}.")
    known = GPUS[name]
    return replace(known, efficiencies=measured(name, known.efficiencies, known.peak, known.bandwidth))


def measure_cpu(precision: Precision, product: tuple[int, int, int] | None = None) -> Device:
    """Measure this machine in about a second.

    Args:
        precision: Arithmetic of the product; TF32 runs as float32 on CPUs.
        product: (rows, inner, columns) of the product that matters most; long sides are cut, which keeps the rate.

    Returns:
        The device, with this one precision.
    """
    rows, inner, columns = (max(1, min(size, 1024)) for size in product or (512, 512, 512))
    rates = {precision: _product_rate(rows, inner, columns, product_dtype(precision))}
    data = torch.ones(1 << 26, device="cpu")  # 256 MiB: larger than any cache
    bandwidth = data.nbytes / _seconds(data.sum)
    tiny = torch.ones(8, device="cpu")
    launch = _seconds(lambda: [tiny + tiny for _ in range(100)]) / 100
    # Bookkeeping of autograd and of the fused operations around each kernel: a few plain operations' worth.
    shares = uniform(dict.fromkeys(rates, 1.0), 0.9, 4 * launch, "measured on this machine")
    return Device("cpu", 0, bandwidth, rates, shares, asynchronous=False, measured=True)


def _product_rate(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """FLOP per second of one matrix product."""
    left, right = (torch.ones(size, dtype=dtype, device="cpu") for size in ((rows, inner), (inner, columns)))
    out = torch.empty(rows, columns, dtype=dtype, device="cpu")
    return 2.0 * rows * inner * columns / _seconds(lambda: torch.mm(left, right, out=out))


def touch_rate() -> float:
    """Measure the bytes per second at which fresh memory is written for the first time, page faults included."""
    size = 1 << 24
    return 4 * size / _seconds(lambda: torch.empty(size, device="cpu").fill_(0.0), rounds=3)


def _seconds(function: Callable[[], object], rounds: int = 5) -> float:
    """Median time of one call, after one that does not count."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
