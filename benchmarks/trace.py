"""Products to a trace of 1 %: Hutchinson's estimator, XTrace, and the deflated trace of `slq`, block by block.

    python benchmarks/trace.py --seeds 5

All are asked for a standard error of 1 %, that is a 95 % bar of 1.96 %, on the blocks of the demo. What Hutchinson's
estimator takes is the law of its vectors, 2 (|H|_F^2 - (tr H)^2 / n) over the square of 1 % of the trace, with the norm
and the trace of a reference; ``--hutchinson`` runs it, too. XTrace and `slq` stop by their own bars, so what they take
includes what the wait for the next look costs, and `slq` finds the spectrum beside it. A block whose bar did not get
there within the ceiling is compared at the bar that it got, which is marked: its ratio is by what Hutchinson's
estimator takes to that.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any, NamedTuple

import torch
from jobs import SIZES, gpt_job
from results import machine

import hvp_engine as he
from hvp_engine.experiments import demo
from hvp_engine.experiments.data.corpus import standard_library

ERROR = 0.01
BAR = 1.96 * ERROR


class Taken(NamedTuple):
    """What one way took for one block, over the seeds."""

    products: float
    bar: float
    error: float


def problem(size: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the demo's trained model and its blocks but the whole Hessian, or a random model of some size."""
    if size == "demo":
        corpus = standard_library()
        model, _ = demo.train(corpus, False)
        job = demo.job(corpus)
        blocks = {name: patterns for name, patterns in job["blocks"].items() if name != "full"}
        return model, {"loss": job["loss"], "blocks": blocks, "data": job["data"]}
    job = gpt_job(size)
    return job.model, {"loss": he.losses.causal_lm, "blocks": job.patterns, "data": job.data}


def sampled(model: Any, asked: dict[str, Any], options: argparse.Namespace, method: str, seed: int) -> Any:
    """Run a trace to the bar; return estimate and products by block."""
    found = he.trace(model, **asked, tolerance=BAR, products=options.ceiling, method=method, seed=seed, check=False)
    taken = found.manifest["sampling"]
    return {name: (bar, taken[name]["products"]) for name, bar in found.items()}


def deflated(model: Any, asked: dict[str, Any], options: argparse.Namespace, seed: int) -> Any:
    """Do the same by slq."""
    found = he.slq(model, **asked, tolerance={"trace": BAR}, seed=seed, check=False)
    facts = found.manifest["adaptive"]["blocks"]
    return {name: (spectrum.trace(), facts[name]["products"]) for name, spectrum in found.items()}


def over_seeds(runs: list[Any], true: dict[str, float]) -> dict[str, Taken]:
    """Take medians over the seeds."""
    return {
        name: Taken(
            statistics.median(run[name][1] for run in runs),
            statistics.median((run[name][0].high - run[name][0].low) / 2 / abs(true[name]) for run in runs),
            statistics.median(abs(run[name][0].value / true[name] - 1.0) for run in runs),
        )
        for name in runs[0]
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="demo", choices=["demo", *SIZES])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ceiling", type=int, default=1000, help="products that a block may take")
    parser.add_argument("--reference", type=int, default=2000, help="products of the reference")
    parser.add_argument("--hutchinson", action="store_true", help="run Hutchinson's estimator beside its law")
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine(torch.device("cpu")).items()))
    model, asked = problem(options.size)
    asked["progress"] = False
    exact = he.norms(model, **asked, products=options.reference, seed=1_000_003)
    true = {name: found.trace.value for name, found in exact.items()}
    seeds = range(options.seeds)
    ways = {
        "XTrace": over_seeds([sampled(model, asked, options, "xtrace", seed) for seed in seeds], true),
        "slq": over_seeds([deflated(model, asked, options, seed) for seed in seeds], true),
    }
    if options.hutchinson:
        ways["Hutchinson, run"] = over_seeds(
            [sampled(model, asked, options, "hutchinson", seed) for seed in seeds], true
        )
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    for name, found in exact.items():
        half = (found.trace.high - found.trace.low) / 2
        law = 2.0 * (found.frobenius_norm.value**2 - true[name] ** 2 / found.numel) / (ERROR * true[name]) ** 2
        line = f"{name:24} {found.numel:>8,}  trace {true[name]:10.4g} ± {half:7.1g}  Hutchinson {law:9,.0f}"
        for way, blocks in ways.items():
            taken = blocks[name]
            ratio = law / taken.products * (BAR / max(BAR, taken.bar)) ** 2
            ratios[way].append(ratio)
            mark = f" at ± {100 * taken.bar:.1f} %" if taken.bar > 1.01 * BAR else ""
            line += f"  {way} {taken.products:6,.0f} ({ratio:5.1f}x{mark}, off {100 * taken.error:.2f} %)"
        print(line)
    for way, of_blocks in ratios.items():
        enough = sum(ratio >= 3.0 for ratio in of_blocks)
        print(
            f"{way}: median over the blocks {statistics.median(of_blocks):.1f}x fewer products than Hutchinson's law, "
            f"3x or more in {enough} of {len(of_blocks)}"
        )


if __name__ == "__main__":
    main()
