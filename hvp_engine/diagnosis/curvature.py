"""Numerical tests of the second derivative, block by block."""

from __future__ import annotations

import time
from typing import Any

from hvp_engine.blocks import Partition
from hvp_engine.diagnosis.allowance import CHECK, WIDEST, Allowance
from hvp_engine.diagnosis.report import BlockCheck, Finding
from hvp_engine.errors import SecondDerivativeError
from hvp_engine.operators.derivative_check import DerivativeCheck, Verification
from hvp_engine.operators.verification import describe, in_widest_arithmetic
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.system.formatting import first_names, format_time
from hvp_engine.system.phases import phase

_SUSPECTS = 5
_SAMPLES = 16  # of two samples, statistics of a batch leave nothing


def examine_blocks(
    objective: Objective, partition: Partition, batch: Any, suspects: list[str], allowed: Allowance, share: float
) -> tuple[list[Finding], list[BlockCheck]]:
    """Test symmetry and finite differences of the union of all blocks, then of every block.

    Args:
        objective: The job's objective.
        partition: The job's blocks.
        batch: A batch on the model's device.
        suspects: What to name where a block is wrong.
        allowed: The time. Fewer samples, and float32, serve where it is short; blocks that are not reached are left
            out, and a note says so.
        share: How much of what is left may be taken.

    Returns:
        Findings, and the measurements; the first is that of the union where there are several blocks.
    """
    checks: list[BlockCheck] = []
    failures: dict[str, list[str]] = {}
    deadline = time.monotonic() + share * allowed.left
    samples = min(batches.samples(batch) or 1, _SAMPLES)
    widest = allowed.most(samples, WIDEST * CHECK, share / 2) or allowed.most(1, WIDEST * CHECK, share)
    count = widest or allowed.most(samples, CHECK, share) or allowed.most(1, CHECK, 1.0)
    if not count:
        return [allowed.left_out("Second derivatives", "blocks-not-reached", CHECK)], checks

    def examine(test: DerivativeCheck, piece: Any) -> None:
        del piece
        checks.clear()
        begun = time.monotonic()
        union = test.measure(test.union)
        slowest = time.monotonic() - begun
        if len(partition.blocks) > 1:
            checks.append(_check(test.union.name, test.union.numel, union))
        for name, block in partition.blocks.items():
            now.reach(len(checks) / (len(partition.blocks) + 1))
            if time.monotonic() + slowest > deadline:  # that of all blocks took the longest
                return
            try:
                checks.append(_check(name, block.numel, test.measure(block, union.curvature)))
            except SecondDerivativeError as error:
                failures.setdefault(str(error), []).append(name)

    pieces = [batches.few_samples(batch, count)]
    if allowed.allows((batches.samples(batch) or 1) * CHECK, share):
        pieces.append(batch)
    estimate = format_time(allowed.seconds(count * CHECK * (WIDEST if widest else 1)))
    try:
        with phase(f"testing second derivatives, of all blocks together for about {estimate}") as now:
            in_widest_arithmetic(objective, partition.parameters, pieces, examine, widest=widest > 0)
    except SecondDerivativeError as error:
        message, _, _ = str(error).partition(" check=False")
        code = "curvature-not-finite" if "not finite" in message else "second-derivative-fails"
        return [Finding("error", code, message)], checks
    findings = [
        Finding("error", "second-derivative-fails", f"{text} Blocks: {first_names(names)}.")
        for text, names in failures.items()
    ]
    return findings + _judge(partition, checks, suspects), checks


def _check(name: str, numel: int, measured: Verification) -> BlockCheck:
    return BlockCheck(
        name,
        numel,
        measured.dtype,
        measured.asymmetry,
        measured.finite_difference,
        measured.curvature,
        measured.wrong,
    )


def _judge(partition: Partition, checks: list[BlockCheck], suspects: list[str]) -> list[Finding]:
    findings: list[Finding] = []
    wrong = [check for check in checks if check.wrong]
    if wrong:
        worst = max(wrong, key=lambda check: max(_or_zero(check.asymmetry), _or_zero(check.finite_difference)))
        measured = Verification(worst.dtype, worst.asymmetry, worst.finite_difference, worst.curvature)
        named = "; ".join(suspects[:_SUSPECTS]) or "none found; look for .data, numpy and hand-written backward passes"
        names = [check.name for check in wrong if check.name in partition.blocks] or [worst.name]
        findings.append(
            Finding(
                "error",
                "wrong-second-derivative",
                f"The second derivative is wrong without an error message in {len(names)} block(s): "
                f"{first_names(names)}; at worst ({worst.name}): {describe(measured)}. Suspects: {named}.",
                fix="replace the suspects by plain PyTorch operations, or make their backward differentiable",
            )
        )
    flat = [check.name for check in checks if not check.curvature and not check.wrong]
    if flat:
        findings.append(
            Finding(
                "warning",
                "zero-curvature",
                f"{len(flat)} block(s) have no curvature ({first_names(flat)}): the loss is linear in them, or does "
                "not depend on them, and their spectrum is a single zero.",
                fix="leave these blocks out",
            )
        )
    missed = [name for name in partition.blocks if name not in {check.name for check in checks}]
    if missed and not any(check.name in partition.blocks and check.wrong for check in checks):
        message = f"{len(missed)} block(s) were not tested one by one: {first_names(missed)}."
        findings.append(Finding("note", "blocks-not-reached", message, fix="give more seconds"))
    return findings


def _or_zero(value: float) -> float:
    return value if value == value else 0.0  # noqa: PLR0124 - nan
