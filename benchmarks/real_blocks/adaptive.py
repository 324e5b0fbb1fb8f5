"""The job with a tolerance: what it spends and how far off it is, replayed on kept streams and run as users run it.

Every decision of the job is a pure function of coefficients (`hvp_engine.krylov.stopping`), so the streams that were
kept tell for any start what it would have done, at no product. The real calls then show that it does so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import hvp_engine as he
from hvp_engine.krylov.stopping import CHECK_EVERY, FIRST_CHECK, Ceilings, Targets, judge
from hvp_engine.results.coefficients import Coefficients

from .scores import SCORES, Judge, Ours
from .streams import STEPS, Streams, exact, judged
from .truth import Truth, coefficients, truths
from .zoo import Network, trained

TOLERANCES = (0.1, 0.05, 0.02)
CALLED = TOLERANCES
MOST_PROBES = 10
STARTS = 10


@dataclass(frozen=True, eq=False)
class Stopped:
    """Where a job with a tolerance stopped for one block."""

    found: Coefficients
    reached: bool

    @property
    def products(self) -> int:
        """Products that its streams took."""
        return int(self.found.steps.sum())


def replay(streams: Streams, order: NDArray[np.int64], targets: Targets) -> Stopped:
    """Do what the job would have done had it drawn the probes in this order."""
    steps = FIRST_CHECK
    while True:
        found = coefficients(streams, order[:1], steps)
        verdict = judge({"b": found}, targets, ceilings=Ceilings(MOST_PROBES))["b"]
        if verdict.steps_suffice or steps >= STEPS:
            break
        steps = min(steps + CHECK_EVERY, STEPS)
    while not verdict.reached and len(found.steps) < min(verdict.probes, MOST_PROBES, len(order)):
        found = coefficients(streams, order[: min(verdict.probes, MOST_PROBES, len(order))], steps)
        verdict = judge({"b": found}, targets, ceilings=Ceilings(MOST_PROBES))["b"]
    return Stopped(found, verdict.reached)


def replayed(network: Network, cache: Path) -> list[dict[str, object]]:
    """Return a row per block and tolerance: what many starts spent, how far off they were, how often the bar held."""
    judge_ = Judge(truths(network, cache))
    rows: list[dict[str, object]] = []
    for name, streams in judged(network, cache).items():
        available = len(streams.alphas)
        for tolerance in TOLERANCES:
            targets, starts = Targets.parse(tolerance), range(min(STARTS, available))
            jobs = [replay(streams, np.roll(np.arange(available), -start), targets) for start in starts]
            errors = [judge_.errors(name, Ours(name, job.found)) for job in jobs]
            kept = [error["w1"] <= tolerance for error, job in zip(errors, jobs, strict=True) if job.reached]
            rows.append(
                {
                    "network": network.name,
                    "block": name,
                    "numel": streams.numel,
                    "tolerance": tolerance,
                    "products": float(np.median([job.products for job in jobs])),
                    "reached": sum(job.reached for job in jobs),
                    "kept": sum(kept),
                    "starts": len(jobs),
                    "errors": {score: float(np.median([error[score] for error in errors])) for score in SCORES},
                }
            )
    return rows


def called(network: Network, cache: Path, tolerance: float, seed: int) -> list[dict[str, object]]:
    """Call `slq` as a user does, with a tolerance and nothing else, on the blocks whose eigenvalues are all known.

    Returns:
        A row per block: what its account in the manifest says, true errors, whether bars of trace and norm hold.
    """
    known = exact(network, cache)
    if not known:
        return []
    network = replace(network, blocks={name: network.blocks[name] for name in network.blocks if name in known})
    judge_ = Judge(truths(network, cache))
    model, data = trained(network, cache)
    spectra = he.slq(
        model,
        network.loss,
        network.blocks,
        data=data,
        tolerance=tolerance,
        seed=seed,
        memory=4 << 30,
        out=cache / network.name / f"tolerance-{tolerance:g}-{seed}",
    )
    estimated = {name: Ours(name, spectrum.coefficients) for name, spectrum in spectra.items()}
    js0 = judge_.js0(estimated)
    accounts = spectra.manifest["adaptive"]["blocks"]
    return [
        {
            "network": network.name,
            "block": name,
            "numel": spectrum.numel,
            "tolerance": tolerance,
            "seed": seed,
            "products": accounts[name]["products"],
            "by_kind": accounts[name]["products_by_kind"],
            "stopped_by": accounts[name]["stopped_by"],
            "reached": not accounts[name]["not_reached"],
            "errors": {
                **judge_.errors(name, estimated[name]),
                "js0": js0,
                "trace": _trace(spectrum, judge_.truths[name]),
            },
            "off": _off(spectrum, judge_.truths[name]),
        }
        for name, spectrum in spectra.items()
    ]


def _trace(spectrum: he.Spectrum, truth: Truth) -> float:
    """Return the error of the trace as it is published, single products and all, over the Frobenius norm."""
    return abs(spectrum.trace().value - truth.numel * truth.mean) / truth.frobenius


def _off(spectrum: he.Spectrum, truth: Truth) -> dict[str, float]:
    """Return how far off trace and norm are, in lengths of their bars towards the truth: within 1 the bar holds."""
    off = {}
    for name, found, known in (
        ("trace", spectrum.trace(), truth.numel * truth.mean),
        ("norm", spectrum.frobenius_norm(), truth.frobenius),
    ):
        end = found.high if known > found.value else found.low
        off[name] = abs(known - found.value) / max(abs(end - found.value), 1e-12 * abs(known))
    return off
