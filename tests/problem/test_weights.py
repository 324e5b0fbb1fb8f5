"""Batches and pieces of batches are weighted right, or the loss is asked for its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from refusals import mean_loss, refuse
from torch import Tensor, nn
from weighed import EQUAL, RAGGED, X, Y, classifier, deviation

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, ObjectiveError
from hvp_engine.problem.batches import map_tensors
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.weights import check_split, check_weights

CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.1])


def summed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def penalised(model: nn.Module, batch: Any) -> Tensor:
    return summed(model, batch) + 0.1 * sum(p.square().sum() for p in model.parameters())


def weighted_by_class(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS.to(batch[0].dtype))


def hits(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).float()


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(batch[0])
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def partly_ignored() -> Tensor:
    targets = Y.clone()
    targets[[0, 1, 9]] = -100
    return targets


@pytest.mark.parametrize("data", [EQUAL, RAGGED], ids=["equal", "ragged"])
@pytest.mark.parametrize("zero_head", [False, True], ids=["any head", "zero head"])
@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_mean_over_samples_is_recombined_from_batches_and_pieces(
    data: Any, zero_head: bool, microbatch: int | None
) -> None:
    assert deviation(classifier(zero_head=zero_head), mean_loss, data, microbatch=microbatch) < 1e-6


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_mean_is_seen_through_the_rounding_of_lower_precisions(precision: str) -> None:
    assert deviation(classifier(), mean_loss, RAGGED, microbatch=2, precision=precision) < 2e-2


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_weight_that_is_wrong_by_less_than_bfloat16_rounds_is_refused(precision: Any, microbatch: int | None) -> None:
    weights = torch.tensor([1.0, 1.01, 0.99])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], weight=weights.to(batch[0].dtype))

    data, error = (RAGGED, ObjectiveError) if microbatch is None else (EQUAL, ConfigurationError)
    with pytest.raises(error, match="changes"):
        he.slq(classifier(), loss, data=data, steps=2, probes=1, precision=precision, microbatch=microbatch)


@pytest.mark.parametrize("flag", [True, torch.tensor(True)])
def test_a_truth_value_is_no_weight(flag: Any) -> None:
    refuse("truth value", classifier(), lambda model, batch: (mean_loss(model, batch), flag), EQUAL)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(x)[0][-1])
        return logits


def test_batches_whose_size_the_shapes_do_not_tell_are_asked_for_their_weights() -> None:
    data = [(torch.randn(7, n, 3), torch.randint(0, 2, (n,))) for n in (6, 2)]  # time first
    refuse(r"without \(total, weight\).*share no leading dimension", Recurrent(), mean_loss, data)
    total = sum(len(y) for _, y in data)

    def right(model: nn.Module) -> Tensor:
        return sum(summed(model, (x.double(), y)) for x, y in data) / total

    assert deviation(Recurrent(), lambda m, b: (summed(m, b), len(b[1])), data, right) < 1e-5
    alone = data[:1]
    assert deviation(Recurrent(), mean_loss, alone, lambda m: mean_loss(m, (data[0][0].double(), data[0][1]))) < 1e-5


def test_sequences_of_other_lengths_are_asked_for_their_weights() -> None:
    data = [(torch.randn(n, t, 4), torch.randint(0, 3, (n, t))) for n, t in ((3, 9), (2, 4))]

    def token_mean(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    refuse("more than their number of samples", classifier(), token_mean, data)


def test_lists_of_sequences_are_asked_for_their_weights() -> None:
    def mean_of_means(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return torch.stack([model(sequence).square().mean() for sequence in batch]).mean()

    for lengths in ([[5, 3], [2, 6, 4]], [[5, 5], [5]]):
        data = [[torch.randn(n, 4) for n in batch] for batch in lengths]
        refuse(r"\(total, weight\)", classifier(), mean_of_means, data)
        first = [sequence.double() for sequence in data[0]]
        assert deviation(classifier(), mean_of_means, data[:1], lambda m, b=first: mean_of_means(m, b)) < 1e-6


def test_an_empty_batch_is_no_sample() -> None:
    data = [(X, Y), (X[:0], Y[:0])]
    refuse("has no samples", classifier(), mean_loss, data)
    assert deviation(classifier(), he.losses.classification, data) < 1e-6


@pytest.mark.parametrize("zero_head", [False, True], ids=["any head", "zero head"])
def test_a_mean_that_weights_samples_by_their_content_is_no_mean_over_samples(zero_head: bool) -> None:
    model = classifier(zero_head=zero_head)
    refuse("putting batches 0 and 2 together", model, weighted_by_class, RAGGED)
    with pytest.raises(ConfigurationError, match=r"micro-batches of 2 changes (the loss|its gradient)"):
        he.HessianOperator(model, weighted_by_class, data=EQUAL, microbatch=2)

    def right(model: nn.Module) -> Tensor:
        return sum(weighted_by_class(model, (x.double(), y)) for x, y in EQUAL) / 2

    if not zero_head:
        assert deviation(model, weighted_by_class, EQUAL, right) < 1e-6


def test_every_batch_that_is_split_is_looked_at_not_the_largest_alone() -> None:
    padded = (X[:8], partly_ignored()[:8])
    with pytest.raises(ConfigurationError, match="Splitting batch 1 of 8 samples"):
        he.HessianOperator(classifier(), mean_loss, data=[(X[:8], Y[:8]), padded], microbatch=4)


def test_a_sum_over_several_batches_is_named() -> None:
    for loss in (summed, penalised):
        refuse("looks like a sum", classifier(), loss, EQUAL)
    right = lambda m: summed(m, (X.double(), Y))  # noqa: E731
    assert deviation(classifier(), summed, [(X, Y)], right) < 1e-6
    with pytest.raises(ConfigurationError, match="Splitting batch 0"):
        he.HessianOperator(classifier(), summed, data=[(X, Y)], microbatch=4)


@pytest.mark.parametrize("zero_head", [False, True], ids=["any head", "zero head"])
def test_a_contrastive_loss_is_no_sum(zero_head: bool) -> None:
    def right(model: nn.Module) -> Tensor:
        return sum(contrastive(model, (x.double(), y)) for x, y in EQUAL) / 2

    model = classifier(zero_head=zero_head)
    he.HessianOperator(model, contrastive, data=EQUAL)
    if not zero_head:
        assert deviation(model, contrastive, EQUAL, right) < 1e-6
        with pytest.raises(ConfigurationError, match="changes the loss"):
            he.HessianOperator(model, contrastive, data=EQUAL, microbatch=4)


@pytest.mark.parametrize("data", [EQUAL, [(X, Y)]], ids=["two batches", "one batch"])
def test_an_accuracy_is_no_weight(data: Any) -> None:
    refuse("second one is no weight", classifier(), lambda m, b: (mean_loss(m, b), hits(m, b).mean()), data)
    refuse("second one is no weight", classifier(), lambda m, b: (summed(m, b), hits(m, b).mean()), data)


def test_an_average_where_samples_cannot_be_cut_is_no_weight() -> None:
    data = [(torch.randn(7, 6, 3), torch.randint(0, 2, (6,)))]

    def with_average(model: nn.Module, batch: Any) -> Any:
        return mean_loss(model, batch), 0.625

    refuse("less than one sample", Recurrent(), with_average, data)
    with pytest.raises(ObjectiveError, match=r"less than one sample.*weight"):
        he.hvp(classifier(), lambda m: (mean_loss(m, (X, Y)), 0.625), {"full": torch.ones(1, 43)})


def test_a_mean_is_no_total() -> None:
    for count in (lambda m, b: len(b[1]), lambda m, b: hits(m, b).sum()):
        refuse("first one looks like a mean", classifier(), lambda m, b, c=count: (mean_loss(m, b), c(m, b)), EQUAL)


@pytest.mark.parametrize(
    ("weight", "data"),
    [(lambda b: len(b[1]), RAGGED), (lambda b: len(b[1]) / 16, RAGGED), (lambda b: 1.0, EQUAL), (lambda b: 0.5, EQUAL)],
    ids=["count", "share of the data", "one", "a half"],
)
def test_counts_shares_and_constants_are_weights(weight: Any, data: Any) -> None:
    assert deviation(classifier(), lambda m, b: (mean_loss(m, b) * weight(b), weight(b)), data) < 1e-6


def test_a_sum_with_a_constant_weight_is_refused_over_several_batches() -> None:
    refuse("let both grow", classifier(), lambda m, b: (summed(m, b), 1.0), EQUAL)
    right = lambda m: summed(m, (X.double(), Y))  # noqa: E731
    assert deviation(classifier(), lambda m, b: (summed(m, b), 1.0), [(X, Y)], right) < 1e-6


def test_a_constant_weight_does_not_split() -> None:
    with pytest.raises(ConfigurationError, match=r"changes the weight from 1 to 1 \+ 1"):
        he.HessianOperator(classifier(), lambda m, b: (mean_loss(m, b), 1.0), data=EQUAL, microbatch=4)


def test_the_fix_that_is_shown_works() -> None:
    with pytest.raises(ObjectiveError) as refused:
        he.HessianOperator(classifier(), weighted_by_class, data=RAGGED)
    code = str(refused.value).partition("\n\n")[2].partition("\n\nwhere")[0]
    names: dict[str, Any] = {"F": F}
    exec("\n".join(line.removeprefix("    ") for line in code.splitlines()), names)
    assert deviation(classifier(), names["loss"], RAGGED, microbatch=3) < 1e-6


def test_rows_taken_for_inputs_and_targets_are_noticed() -> None:
    model = nn.Linear(1, 1)
    refuse("first two rows", model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [X[:, :1], X[:, 1:2]])
    he.HessianOperator(model, lambda m, b: m(b).square().mean(), data=[X[:, :1], X[:, 1:2]])


def test_labels_that_the_loss_brings_itself_serve_one_whole_batch() -> None:
    assert deviation(classifier(), lambda m, b: F.cross_entropy(m(b), Y), [X]) < 1e-6


def test_a_loss_that_takes_things_out_of_its_batch_leaves_the_data_alone() -> None:
    data = [{"x": x, "y": y} for x, y in EQUAL]
    assert deviation(classifier(), lambda m, b: F.cross_entropy(m(b["x"]), b.pop("y")), data) < 1e-6
    assert all("y" in batch for batch in data)


def test_a_loss_that_takes_gradients_inside_may_be_split_and_averaged() -> None:
    def slopes(model: nn.Module, batch: Any) -> Tensor:
        inputs = batch.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return slope.square().mean()

    objective = Objective(classifier(), slopes, [X[:6], X[6:]], "fp64")
    with objective.arithmetic():
        objective.evaluate(objective.largest_batch())
        check_weights(objective, objective.largest_batch())
        check_split(objective, 4)


def test_a_loss_that_changes_its_mind_about_weights_is_refused() -> None:
    def either(model: nn.Module, batch: Any) -> Any:
        mean = mean_loss(model, batch)
        return mean if len(batch[1]) == 8 else (mean * len(batch[1]), len(batch[1]))

    refuse("scalar for one batch", classifier(), either, EQUAL)


def test_checks_cost_a_few_samples_and_nothing_where_nothing_is_in_doubt() -> None:
    rows = {"seen": 0}

    def counted(loss: Any) -> Any:
        def wrapped(model: nn.Module, batch: Any) -> Any:
            rows["seen"] += len(batch[1])
            return loss(model, batch)

        return wrapped

    big = [map_tensors(lambda t: t.repeat(8, *[1] * (t.dim() - 1)), batch) for batch in EQUAL]
    for loss, data, most in ((mean_loss, big[:1], 0), (mean_loss, big, 4), (he.losses.classification, big, 4)):
        objective = Objective(classifier(), counted(loss), data, "fp32")
        with objective.arithmetic():
            largest = objective.largest_batch()
            objective.check_deterministic(largest)
            rows["seen"] = 0
            check_weights(objective, largest)
        assert rows["seen"] <= most
