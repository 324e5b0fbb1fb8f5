"""Shares of a device's ceilings that the engine's operations reach, by family; a measured run replaces the table.

The numbers of GPUs are estimates from sources, compiled kernels and data sheets until a card was measured
(:mod:`hvp_engine.planning.measured`); a plan says which they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hvp_engine.planning.meter import Family
from hvp_engine.problem.precision import Precision

PLAIN = ("linear", "elementwise")  # families that are PyTorch's own operations, not launches of this package

Shares = Mapping[Precision, float]


@dataclass(frozen=True)
class Efficiencies:
    """What operations reach.

    Attributes:
        product: Share of the peak of matrix products by family and precision; other families multiply as ``"linear"``.
        bandwidth: Share of the bandwidth by family, ``"reorthogonalise"`` and ``"reorthogonalise BASIS"`` among them;
            others stream as ``"elementwise"``.
        plain_launch: Seconds that starting an operation of PyTorch takes.
        fused_launch: Seconds that starting a kernel of this package takes.
        source: Where the numbers are from, as people read it: ``"predicted"`` or ``"measured on NAME"``.
    """

    product: Mapping[str, Shares]
    bandwidth: Mapping[str, float]
    plain_launch: float
    fused_launch: float
    source: str = "predicted"

    def of_product(self, family: Family, precision: Precision) -> float:
        """Return the share of the peak that a family's products reach."""
        return self.product.get(family, self.product["linear"])[precision]

    def of_bandwidth(self, *families: str) -> float:
        """Return the share of the bandwidth that the first family in the table reaches."""
        return next(self.bandwidth[name] for name in (*families, "elementwise") if name in self.bandwidth)

    def host(self, family: Family, launches: int) -> float:
        """Return the host's seconds for one operation."""
        return launches * (self.plain_launch if family in PLAIN else self.fused_launch)


def uniform(precisions: Mapping[Precision, float], bandwidth: float, launch: float, source: str) -> Efficiencies:
    """Return one share for all families."""
    return Efficiencies({"linear": precisions}, {"elementwise": bandwidth}, launch, launch, source)


_LINEAR: Shares = {"fp64": 0.8, "fp32": 0.85, "tf32": 0.65, "bf16": 0.6}
_STREAMS = {
    "elementwise": 0.8,
    "activation": 0.75,
    "norm": 0.65,
    "loss": 0.8,
    "reorthogonalise": 0.8,
    "reorthogonalise bf16": 0.65,
}
# What a launch adds to a product that is replayed as a CUDA graph, measured on an H100. Backward passes take the host
# ten times as long and more.
_PLAIN_LAUNCH, _FUSED_LAUNCH = 4e-6, 4e-6

# GPUs without kernels of this package's operations: PyTorch's own everywhere.
PLAIN_GPU = Efficiencies({"linear": _LINEAR}, _STREAMS, _PLAIN_LAUNCH, _FUSED_LAUNCH)
AMPERE = Efficiencies(
    {
        "linear": _LINEAR,
        "head": {**_LINEAR, "bf16": 0.57},
        "attention forward": {"fp64": 0.8, "fp32": 0.22, "tf32": 0.12, "bf16": 0.4},
        "attention backward": {"fp64": 0.8, "fp32": 0.22, "tf32": 0.12, "bf16": 0.28},
        "attention second": {"fp64": 0.8, "fp32": 0.22, "tf32": 0.12, "bf16": 0.28},
    },
    _STREAMS,
    _PLAIN_LAUNCH,
    _FUSED_LAUNCH,
)
HOPPER = Efficiencies(
    {
        "linear": {**_LINEAR, "bf16": 0.57},
        "head": {**_LINEAR, "bf16": 0.45},
        "attention forward": {"fp64": 0.8, "fp32": 0.17, "tf32": 0.075, "bf16": 0.3},
        "attention backward": {"fp64": 0.8, "fp32": 0.17, "tf32": 0.075, "bf16": 0.22},
        "attention second": {"fp64": 0.8, "fp32": 0.17, "tf32": 0.075, "bf16": 0.2},
    },
    {**_STREAMS, "activation": 0.7, "norm": 0.57},
    _PLAIN_LAUNCH,
    _FUSED_LAUNCH,
)
