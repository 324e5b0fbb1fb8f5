"""Whether batches, and pieces of batches, are weighted for certain. What is not certain is asked for, never guessed.

A scalar loss on one batch needs no weight. Over several batches its weight is certain where all have the same shapes,
or where they differ in the number of samples alone and the loss is seen to be a mean over samples: two batches put
together have the loss that their numbers of samples say. A declared weight must grow with the batch, as the total does,
or be a constant of its batch. Pieces of a batch must recombine to the batch, in every batch that is cut.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvp_engine.errors import ConfigurationError, HvpEngineError, ObjectiveError
from hvp_engine.losses import COUNTED
from hvp_engine.problem import batches
from hvp_engine.problem.growth import Grown, growth, value_of
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.recombination import Piece, disagreement
from hvp_engine.system.formatting import first_line

_FIX = """Return (total, weight) from the loss, for instance

    def loss(model, batch):
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets, reduction="sum"), len(targets)

where weight counts what total sums over; hvp_engine.losses has losses that do."""


def check_weights(objective: Objective, largest: Any) -> None:
    """Refuse a loss and data whose batches cannot be weighted for certain.

    Call inside the objective's arithmetic, after a complete pass over the data. One batch of a scalar loss costs
    nothing, nor do the losses of :mod:`hvp_engine.losses`; batches of equal shapes, and declared weights, four samples;
    batches of other sizes three evaluations of one batch of every size.

    Args:
        objective: Loss, model and data.
        largest: The data's largest batch.

    Raises:
        ObjectiveError: The weights are not certain; the message says why, and shows the fix.
    """
    if objective.declares_weight is None:
        objective.spot_value(largest)
    several = len(objective.layouts) > 1
    if any(objective.loss is known for known in COUNTED):
        objective.weight_shown = True
    if objective.weight_shown or objective.data is None or not (several or objective.declares_weight):
        return
    exact = objective.exact()
    with exact.arithmetic():
        _check(objective, exact, largest, several=several)


def _check(objective: Objective, exact: Objective, largest: Any, *, several: bool) -> None:
    grown = growth(exact, largest)
    if several and isinstance(largest, Tensor) and grown.value in (None, "other"):
        _refuse_rows(exact, largest)
    if objective.declares_weight:
        _check_declared(exact, grown, several=several)
        objective.weight_shown = grown.weight is not None
        return
    if grown.value == "sum":
        raise ObjectiveError(
            "The loss looks like a sum over the samples, not a mean (twice the batch gives twice the loss), so that "
            f"several batches cannot be averaged: every batch counts as one mean. {_FIX}"
        )
    if len(set(objective.layouts)) > 1:
        _check_sizes(objective, exact)


def looks_like_a_sum(objective: Objective, batch: Any) -> bool:
    """Say whether a scalar loss adds up over the samples of a batch; call inside the objective's arithmetic."""
    if objective.declares_weight is not False:
        return False
    exact = objective.exact()
    with exact.arithmetic():
        return growth(exact, batch).value == "sum"


def check_sum_of_weights(objective: Objective, weight: float) -> None:
    """Refuse what all weights of the data add up to where it cannot be a count.

    Raises:
        ObjectiveError: The weights add up to nothing, or to less than one sample where nothing shows that they count.
    """
    if weight <= 0:
        raise ObjectiveError("The weights of all batches sum to zero: every target is ignored.")
    if objective.declares_weight and not objective.weight_shown and weight < 1 - 1e-6:
        raise ObjectiveError(
            f"The loss returned two values, which are read as (total, weight), and the weights add up to {weight:.6g}, "
            f"less than one sample: is the second value an accuracy or another average? {_FIX}"
        )


def check_split(objective: Objective, step: int) -> None:
    """Refuse to cut batches into pieces that do not recombine.

    Call inside the objective's arithmetic. Of a scalar loss every two neighbouring pieces are compared with the batch
    of both, in every batch that is cut, because a mean over tokens, say, may weight samples by what they hold; of a
    loss that declares its weights the first two pieces of every batch. Nothing larger than two pieces is evaluated.

    Args:
        objective: Loss, model and data.
        step: Samples per piece.

    Raises:
        ConfigurationError: Some pieces do not recombine.
    """
    exact = objective.exact()
    with exact.arithmetic():
        _check_split(exact, step, declared=bool(objective.declares_weight))


def _check_split(objective: Objective, step: int, *, declared: bool) -> None:
    for number, batch in objective.batches():
        size = batches.samples(batch)
        if size is None or size <= step:
            continue
        pieces = [Piece(objective, batches.cut(batch, a, min(a + step, size))) for a in range(0, size, step)]
        for k in range(1 if declared else len(pieces) - 1):
            both = Piece(objective, batches.cut(batch, k * step, min((k + 2) * step, size)))
            changed = _changed(pieces[k], pieces[k + 1], both)
            if changed is not None:
                raise ConfigurationError(
                    f"Splitting batch {number} of {size} samples into micro-batches of {step} changes {changed}: the "
                    f"loss is not a plain mean over samples, or its total and weight do not add up. {_FIX}"
                )


def _refuse_rows(objective: Objective, batch: Tensor) -> None:
    """Refuse a loss that takes the rows of a tensor for inputs and targets: data=[x, y] in place of data=[(x, y)]."""
    try:
        two, whole = value_of(objective, batches.cut(batch, 0, 2)), value_of(objective, batch)
    except HvpEngineError:  # a loss that takes whole batches only
        return
    if len(batch) == 2 or two.total * whole.weight != whole.total * two.weight:
        return
    try:
        value_of(objective, batches.cut(batch, 0, 1))
    except HvpEngineError as error:  # one row is too few
        raise ObjectiveError(
            "The loss uses nothing of a batch but its first two rows, and every batch is one tensor: if these are "
            "inputs and targets, they are one batch, data=[(x, y)]."
        ) from error


def _check_declared(objective: Objective, grown: Grown, *, several: bool) -> None:
    """Refuse a second value that is no weight: it neither grows with the batch nor stays the same."""
    if grown.weight == "sum" and grown.value == "mean":
        raise ObjectiveError(
            "The loss returned two values, which are read as (total, weight), but the first one looks like a mean: it "
            "does not grow with the batch, as the weight does. Return (mean * weight, weight), or the scalar mean "
            f"alone. {_FIX}"
        )
    if grown.weight == "other":
        _refuse_weight("of two samples together is neither what the two weigh alone, added, nor the same for all")
    if grown.weight != "constant":
        return
    for number, batch in objective.batches():
        few, whole = value_of(objective, batches.few_samples(batch)).weight, value_of(objective, batch).weight
        if few != whole:
            _refuse_weight(f"of batch {number} is {whole:.6g}, that of its first two samples neither that nor a part")
    if several and grown.value == "sum":
        raise ObjectiveError(
            "The loss returned (total, weight), but the total looks like a sum over the samples while the weight is "
            f"the same for any number of them: let both grow. {_FIX}"
        )


def _refuse_weight(why: str) -> None:
    raise ObjectiveError(
        "The loss returned two values, which are read as (total, weight), but the second one is no weight: that "
        f"{why}. Is it an accuracy or another average? Return the scalar mean alone, or a count. {_FIX}"
    )


def _check_sizes(objective: Objective, exact: Objective) -> None:
    """Refuse batches that a scalar loss does not weight by their numbers of samples, or whose numbers are unclear."""
    previous: tuple[int, Piece] | None = None
    first_of: dict[tuple[batches.Entry, ...], int] = {}
    for number, layout in enumerate(objective.layouts):
        first_of.setdefault(layout, number)
    chosen = set(first_of.values())
    for number, batch in objective.batches():
        if number not in chosen:
            continue
        if batches.samples(batch) is None:
            _refuse_batches(objective, "their tensors share no leading dimension that would count the samples")
        piece = Piece(exact, batch, value_of(exact, batch))
        if previous is not None:
            _check_joined(objective, previous, (number, piece))
        previous = number, piece


def _check_joined(objective: Objective, one: tuple[int, Piece], other: tuple[int, Piece]) -> None:
    union = batches.joined(one[1].batch, other[1].batch)
    if union is None:
        _refuse_batches(objective, "they differ in more than their number of samples")
    changed = _changed(one[1], other[1], Piece(one[1].objective, union))
    if changed is not None:
        which = f"batches {one[0]} and {other[0]}"
        _refuse_batches(objective, f"putting {which} together, weighted by their samples, changes {changed}")


def _changed(first: Piece, second: Piece, both: Piece) -> str | None:
    """Say what changes where a batch is cut in two; an error, where the loss takes a piece no more, is a change too."""
    try:
        return disagreement(first, second, both)
    except HvpEngineError as error:
        return f"the loss to an error ({first_line(error)})"


def _refuse_batches(objective: Objective, why: str) -> None:
    layouts = objective.layouts
    number, layout = next((n, layout) for n, layout in enumerate(layouts) if layout != layouts[0])
    raise ObjectiveError(
        "The loss returns a scalar, and how much each batch counts is not certain without (total, weight): batches "
        f"have other shapes ({batches.shapes(layouts[0])} in batch 0, {batches.shapes(layout)} in batch {number}), and "
        f"{why}. {_FIX}"
    )
