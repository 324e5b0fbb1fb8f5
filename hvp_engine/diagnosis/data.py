"""Two passes over the data, compared, and how its batches are weighted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, RandomSampler

from hvp_engine.diagnosis.report import Finding
from hvp_engine.errors import ConfigurationError, NonDeterministicError, ObjectiveError
from hvp_engine.problem import batches
from hvp_engine.problem.growth import value_of
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.randomness import UndisturbedData
from hvp_engine.problem.reading import length_of, read
from hvp_engine.problem.weights import check_split, check_sum_of_weights, check_weights, looks_like_a_sum
from hvp_engine.scheduling.policy import halve

_SPLIT_BATCHES = 8  # that are split to see whether they can be
_END = "pass a list of batches, for instance list(itertools.islice(data, 100))"
_MEAN = "return the mean over the samples, or (total, weight), if you mean the average loss"
_LIST = "pass a list of batches, or a DataLoader with shuffle=False and no random augmentation"


@dataclass
class Passes:
    """What two passes over the data showed.

    Attributes:
        findings: Errors and warnings.
        batch: The largest batch of the first pass; None without data.
        samples: Samples of the whole pass; None where it was not read to its end or they cannot be counted.
        complete: Whether the whole data was read.
    """

    findings: list[Finding] = field(default_factory=list)
    batch: Any = None
    samples: int | None = None
    complete: bool = True


def examine_data(data: Iterable[Any], seconds: float) -> Passes:
    """Read the data twice and compare the batches.

    Args:
        data: Re-iterable of batches.
        seconds: Stop the first pass after this long; what was read is compared.

    Returns:
        Findings, the largest batch and the number of samples.

    Raises:
        ObjectiveError: A batch holds no tensor, or the data has no end.
    """
    passes = Passes()
    if isinstance(data, (set, frozenset)):
        message = "The data is a set: its order changes from process to process, so that a job cannot be resumed."
        passes.findings.append(Finding("warning", "unordered-data", message, fix=_LIST))
    first: list[str] = []
    sizes: list[int | None] = []
    deadline = time.monotonic() + seconds
    source = UndisturbedData(data)

    def in_time() -> Iterator[Any]:
        for number, batch in enumerate(read(source)):
            if first and time.monotonic() > deadline:
                passes.complete = False
                return
            batches.check_values(number, batch)
            first.append(batches.fingerprint(batch))
            sizes.append(batches.samples(batch))
            yield batch

    passes.batch = batches.largest(in_time())
    complete = passes.complete
    # Of a complete pass, a second one that goes on is noticed too.
    second = [batches.fingerprint(batch) for batch in islice(source, len(first) + 1 if complete else len(first))]
    passes.findings += _compare(data, first, second)
    if complete and None not in sizes:
        passes.samples = sum(size for size in sizes if size is not None)
    if not complete:
        message = f"Only the first {len(first)} batches were read twice; the rest would have taken too long."
        passes.findings.append(Finding("note", "data-partly-read", message))
        if length_of(data) is None:
            message = "The data has no length, and its end was not reached: it may have none."
            passes.findings.append(Finding("warning", "data-endless", message, fix=_END))
    return passes


def examine_weights(objective: Objective) -> list[Finding]:
    """Say what the weights of the batches rest on: the checks that :func:`hvp_engine.hvp` makes, as findings.

    Args:
        objective: The whole data, and a loss that is the same in every evaluation.
    """
    try:
        with objective.arithmetic():
            return _weights(objective)
    except ConfigurationError as error:
        message = f"Batches cannot be split, so that they must fit into memory whole. {error}"
        return [Finding("note", "batches-cannot-be-split", message)]
    except NonDeterministicError:  # a finding of its own
        return []
    except ObjectiveError as error:
        return [Finding("error", "weights-uncertain", str(error))]


def _weights(objective: Objective) -> list[Finding]:
    largest = objective.largest_batch()
    check_weights(objective, largest)
    if looks_like_a_sum(objective, largest):
        message = "The loss looks like a sum over the samples, not a mean: twice the batch gives twice the loss."
        return [Finding("warning", "loss-is-a-sum", message, fix=_MEAN)]
    if objective.declares_weight and not objective.weight_shown:
        check_sum_of_weights(objective, sum(value_of(objective, batch).weight for _, batch in objective.batches()))
    size = batches.samples(largest)
    if size is not None and size > 1:
        few = list(islice((batch for _, batch in objective.batches()), _SPLIT_BATCHES))
        check_split(Objective(objective.model, objective.loss, few, objective.precision), halve(size))
    return []


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
