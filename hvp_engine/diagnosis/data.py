"""Two passes over the data, compared."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, RandomSampler

from hvp_engine.diagnosis.report import Finding
from hvp_engine.problem import batches

_LIST = "pass a list of batches, or a DataLoader with shuffle=False and no random augmentation"


@dataclass
class Passes:
    """What two passes over the data showed.

    Attributes:
        findings: Errors and warnings.
        batch: The largest batch of the first pass; None without data.
        samples: Samples of the whole pass; None where it was not read to its end or they cannot be counted.
    """

    findings: list[Finding] = field(default_factory=list)
    batch: Any = None
    samples: int | None = None


def examine_data(data: Iterable[Any], seconds: float) -> Passes:
    """Read the data twice and compare the batches.

    Args:
        data: Re-iterable of batches.
        seconds: Stop the first pass after this long; what was read is compared.

    Returns:
        Findings, the largest batch and the number of samples.
    """
    passes = Passes()
    if isinstance(data, (set, frozenset)):
        message = "The data is a set: its order changes from process to process, so that a job cannot be resumed."
        passes.findings.append(Finding("warning", "unordered-data", message, fix=_LIST))
    first: list[str] = []
    sizes: list[int | None] = []
    deadline = time.monotonic() + seconds
    complete = True

    def read() -> Iterator[Any]:
        nonlocal complete
        for batch in data:
            if first and time.monotonic() > deadline:
                complete = False
                return
            first.append(batches.fingerprint(batch))
            sizes.append(batches.leading(batch))
            yield batch

    passes.batch = batches.largest(read())
    # Of a complete pass, a second one that goes on is noticed too.
    second = [batches.fingerprint(batch) for batch in islice(data, len(first) + 1 if complete else len(first))]
    passes.findings += _compare(data, first, second)
    if complete and None not in sizes:
        passes.samples = sum(size for size in sizes if size is not None)
    if not complete:
        message = f"Only the first {len(first)} batches were read twice; the rest would have taken too long."
        passes.findings.append(Finding("note", "data-partly-read", message))
    return passes


def _compare(data: Iterable[Any], first: list[str], second: list[str]) -> list[Finding]:
    if first == second:
        return []
    shuffled = isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler)
    if shuffled or sorted(first) == sorted(second):
        message = "The data comes in another order in every pass; the Hessian of a changing loss is not defined."
        return [Finding("error", "data-shuffled", message, fix=_LIST)]
    if len(first) != len(second):
        what = f"one pass had {len(first)} batches, the next {'more' if len(second) > len(first) else len(second)}"
    else:
        number = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        what = f"batch {number} had other contents in the second pass"
    message = f"The data changes between two passes: {what}. The Hessian of a changing loss is not defined."
    return [Finding("error", "data-changes", message, fix=_LIST)]
