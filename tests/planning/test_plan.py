"""The public call: what it takes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from planned import CONFIG, small_gpt
from problems import quadratic, symmetric
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import BlockError, ConfigurationError, NonDeterministicError, ObjectiveError
from hvp_engine.experiments.models.gpt import GPT


def test_a_model_without_weights_is_planned_like_one_with() -> None:
    model, data = small_gpt()
    with torch.device("meta"):
        shell = GPT(CONFIG).eval()
    options = {"device": "h100-80gb", "precision": "bf16", "probes": 2}
    with_weights = he.plan(model, he.losses.causal_lm, data=data, **options)
    without = he.plan(shell, he.losses.causal_lm, data=[batch.to("meta") for batch in data], **options)
    assert without == with_weights or without.record() == with_weights.record()


def test_arguments_that_make_no_job_are_refused() -> None:
    model, data = small_gpt()
    loss = he.losses.causal_lm
    with pytest.raises(ConfigurationError, match="is not one of cpu, a100-80gb"):
        he.plan(model, loss, data=data, device="a100")
    with pytest.raises(ConfigurationError, match="v100-16gb has no bf16 arithmetic"):
        he.plan(model, loss, data=data, device="v100-16gb", precision="bf16")
    with pytest.raises(ConfigurationError, match="batches or tokens, not both"):
        he.plan(model, loss, data=data, device="v100-16gb", batches=3, tokens=3)
    with pytest.raises(ObjectiveError, match=r"must not read values \(\.item\(\)"):
        he.plan(model, lambda m, b: m(b).sum().item() * m(b).sum(), data=data, device="v100-16gb")


def lazy_model() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3))


BATCHES = [(torch.ones(6, 4), torch.zeros(6, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": "m"}, ConfigurationError, "model must be a torch.nn.Module, not str"),
        ({"model": lazy_model()}, ConfigurationError, r"no shape yet \(0.weight, 0.bias\): run it on one batch first"),
        ({"model": nn.BatchNorm1d(4)}, NonDeterministicError, r"Call model.eval\(\)"),
        ({"loss": "cross-entropy"}, ConfigurationError, "loss must be a function"),
        ({"data": 5}, ObjectiveError, "data must be a list of batches or another re-iterable, not int"),
        ({"data": iter(BATCHES)}, ObjectiveError, r"pass list\(data\)"),
        ({"data": BATCHES[0][0]}, ObjectiveError, r"pass a list of batches: data=\[batch\]"),
        ({"data": {"inputs": BATCHES[0][0]}}, ObjectiveError, r"pass a list of batches: data=\[batch\]"),
        ({"data": ["text"]}, ObjectiveError, "Batch 0, of type str, has no tensors"),
        ({"data": [torch.ones(0, 4)]}, ObjectiveError, "data is empty"),
        ({"blocks": 7}, BlockError, "blocks=7 is no block specification"),
        ({"microbatch": 0}, ConfigurationError, "microbatch=0 must be a whole number of at least 1"),
        ({"microbatch": -3}, ConfigurationError, "microbatch=-3 must be a whole number of at least 1"),
        ({"memory": 0}, ConfigurationError, "memory=0 must be a positive number of bytes"),
        ({"probes": 0}, ConfigurationError, "probes=0 must be a whole number of at least 1"),
        ({"probes": 10**9}, ConfigurationError, "probes=1000000000 is more than 100,000"),
        ({"steps": -1}, ConfigurationError, "steps=-1 must be a whole number of at least 1"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "a100-80gb"])
def test_what_is_no_job_is_refused_with_cause_and_fix(
    device: str, changed: dict[str, object], error: type[Exception], message: str
) -> None:
    asked = {"model": nn.Linear(4, 3), "loss": he.losses.classification, "data": BATCHES, **changed}
    with pytest.raises(error, match=message):
        he.plan(**asked, device=device)


class Elementwise(nn.Module):
    """No product of matrices anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.scale).square()


@pytest.mark.parametrize("batch", [torch.ones(6, 4), (torch.ones(6, 4),), {"inputs": torch.ones(6, 4)}])
def test_one_batch_of_any_kind_and_a_model_without_products_are_planned(batch: object) -> None:
    def loss(model: nn.Module, given: object) -> torch.Tensor:
        inputs = given["inputs"] if isinstance(given, dict) else given[0] if isinstance(given, tuple) else given
        return model(inputs).mean()

    found = he.plan(Elementwise(), loss, data=[batch], device="h100-80gb", steps=3, probes=2, precision="bf16")
    assert found.job.numel == {"full": 4} and found.setting.microbatch == 6 and found.seconds > 0
    assert found.prediction.parts["second backwards"].flop == 0 < found.prediction.parts["second backwards"].bytes


def test_a_loss_without_data_is_planned_on_this_machine() -> None:
    problem = quadratic(symmetric(torch.linspace(-1, 1, 12)).float())
    plan = he.plan(problem.model, problem.loss, device="cpu", steps=5, probes=2)
    assert plan.calibrated and plan.device.measured and 0 < plan.seconds < 60
    assert "predicted" in plan.summary().splitlines()[0] and "limited by" in plan.summary()


def test_what_an_earlier_forward_pass_left_in_a_model_is_no_hindrance() -> None:
    class Penalised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            self.penalty = logits.square().mean()
            return logits

    model, data = Penalised(4, 3), [torch.randn(5, 4)]
    model(data[0])
    assert model.penalty.grad_fn is not None
    assert he.plan(model, lambda m, x: m(x).sin().mean() + m.penalty, data=data, steps=2, probes=1).seconds > 0
