"""Engine and planner choose alike: micro-batch, passes, kept graphs, waves and head curvature on random sizes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.jobs import runner
from hvp_engine.jobs.adaptive_slq import AdaptiveSlqJob
from hvp_engine.jobs.advancing import planned_waves
from hvp_engine.jobs.slq import SlqJob
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.head import decide, fusion
from hvp_engine.operators.head.find import LinearHead
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.planning import asked as planner
from hvp_engine.planning.counting import CountedHead, DataShape
from hvp_engine.planning.setting import JobSizes, Setting
from hvp_engine.problem import batches
from hvp_engine.processes.team import ALONE
from hvp_engine.scheduling import policy, scheduler
from hvp_engine.scheduling.graph_sizes import GraphSizes
from hvp_engine.scheduling.policy import CurvaturePlan, GraphSize

CASES = 200
DISK = 10**9


@dataclass
class Sizes:
    """Everything that decides a job's setting."""

    numel: dict[str, int]
    settings: JobSettings
    samples: int
    batches: int
    fixed: int
    per_sample: int
    head: tuple[int, int, int] | None  # rows of two samples, hidden size, classes

    def graph_bytes(self, samples: int | None) -> int:
        return self.fixed + self.per_sample * (samples or 1)


def draw(seed: int) -> Sizes:
    """Draw sizes: budgets around what the job needs, so that every rule is at its edge somewhere."""
    dice = random.Random(seed)

    def around(low: float, high: float) -> int:
        return round(low * (high / low) ** dice.random())

    numel = {f"p{i}": around(4, 20_000) for i in range(dice.randint(1, 4))}
    between_blocks = {"js": 0.2} if len(numel) > 1 else {"trace": 0.2}
    steps, probes = dice.randint(1, 12), dice.randint(1, 5)
    samples, per_sample = dice.randint(1, 40), around(100, 10**6)
    fixed = dice.choice([0, around(100, 10**6)])
    vectors = 8 * steps * probes * sum(numel.values())
    memory = around(2.0 * (fixed + per_sample), 6.0 * (fixed + per_sample * samples) + 4.0 * vectors)
    settings = JobSettings(
        steps=steps,
        probes=probes,
        tolerance=dice.choice([None, None, 0.3, between_blocks]),
        precision=dice.choice(["fp32", "fp64", "bf16"]),
        reorthogonalize=dice.choice(["full", "full", "none"]),
        basis=dice.choice(["fp32", "bf16"]),
        microbatch=dice.choice([None, None, None, dice.randint(1, samples)]),
        memory=memory,
        head_curvature=dice.random() < 0.8,
    )
    head = (2 * dice.randint(1, 8), around(2, 64), around(500, 200_000)) if dice.random() < 0.8 else None
    if head is not None:
        numel["head"] = 1  # a block of the head's bias-like weight: it holds the head
    return Sizes(numel, settings, samples, dice.randint(1, 4), fixed, per_sample, head)


class Model(nn.Module):
    """One vector per block, and one number in place of a head."""

    def __init__(self, numel: dict[str, int]) -> None:
        super().__init__()
        for name, size in numel.items():
            self.register_parameter(name, nn.Parameter(torch.full((size,), 0.1)))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    total = sum(parameter.square().sum() for parameter in model.parameters())
    return (total * batch).square().mean()


def engines_choice(sizes: Sizes, monkeypatch: pytest.MonkeyPatch, *, on_cpu: bool) -> dict[str, Any]:
    """Let the engine decide, on graphs and a head of the drawn sizes; nothing is formed, the products are real.

    They run on the CPU in any case: for a GPU only the two rules that ask for the kind of device are told so.
    """
    monkeypatch.setattr(scheduler, "policy", SimpleNamespace(**vars(policy)))
    monkeypatch.setattr(scheduler.policy, "choose_streams_per_pass", told(policy.choose_streams_per_pass, on_cpu))
    monkeypatch.setattr(decide, "choose_curvature", told(policy.choose_curvature, on_cpu))
    monkeypatch.setattr(GraphSizes, "_bytes", lambda self, batch: sizes.graph_bytes(batches.samples(batch)))
    monkeypatch.setattr(decide, "free_disk", lambda: DISK)
    found: list[CurvaturePlan] = []

    def find(objective: Any, batch: Tensor, serving: Any, plain: float) -> LinearHead | None:
        if sizes.head is None:
            return None
        rows, width, classes = sizes.head
        return LinearHead("head", torch.empty(classes, width, device="meta"), rows * min(len(batch), 2) // 2)

    def form(self: Any, plan: CurvaturePlan, *rest: Any) -> None:
        found.append(plan)
        self._store = SimpleNamespace(plan=plan, using=lambda key: self._serving(None))

    monkeypatch.setattr(fusion, "find_head", find)
    monkeypatch.setattr(fusion.HeadFusion, "form", form)
    settings = sizes.settings
    data = [torch.ones(sizes.samples) for _ in range(sizes.batches)]
    operator = HessianOperator(
        Model(sizes.numel), loss, "parameter", data=data,
        precision=settings.precision, microbatch=settings.microbatch, memory=settings.memory,
    )  # fmt: skip
    targets = settings.targets
    job = SlqJob(settings) if targets is None else AdaptiveSlqJob(settings, targets)
    operator.make_room(job.streams(operator))
    if settings.head_curvature:
        operator.form_head_curvature(job.products(operator), False)
    budget = policy.usable(settings.memory, 0)
    job.room = runner._room(operator, budget, None)
    waves = planned_waves(operator, job.streams(operator), budget, ALONE)
    operator.sweep({name: torch.ones(1, size, dtype=operator.dtype) for name, size in operator.numel.items()})
    plan = operator.scheduler.plan
    return {
        "microbatch": plan.microbatch or sizes.samples,
        "streams_per_pass": plan.streams_per_pass,
        "kept_graphs": plan.kept_graphs,
        "graph_bytes": plan.graph_bytes,
        "waves": [dict(Counter(block for block, _ in wave)) for wave in waves],
        "curvature": found[0] if found else None,
    }


def told(rule: Callable[..., Any], on_cpu: bool) -> Callable[..., Any]:
    """A rule that is told another kind of device than the one that runs."""
    return lambda *sizes, **_: rule(*sizes, on_cpu=on_cpu)


def planners_choice(sizes: Sizes, monkeypatch: pytest.MonkeyPatch, *, on_cpu: bool) -> tuple[Setting, list[str]]:
    """Let the planner decide, on counts of the drawn sizes."""
    head = None
    if sizes.head is not None:
        rows, width, classes = sizes.head
        head = CountedHead(rows * min(sizes.samples, 2) // 2, width, classes, frozenset({"head"}))
    size = GraphSize.measured(sizes.samples, sizes.graph_bytes)
    counter = SimpleNamespace(graph_size=lambda samples, on_cpu: size, head=head, count=lambda samples: None)
    monkeypatch.setattr(planner, "JobCounter", lambda *arguments: counter)
    monkeypatch.setattr(planner, "free_disk", lambda: DISK)
    shape, budget = DataShape(None, sizes.samples, sizes.batches), policy.usable(sizes.settings.memory, 0)
    asked = planner.AskedJob(None, None, shape, None, HessianOperator, budget, on_cpu=on_cpu)
    gradient = sum(sizes.numel.values()) * sizes.settings.dtype.itemsize
    job = JobSizes(sizes.numel, sizes.settings, sizes.samples, float(sizes.batches), 0, gradient)
    _, setting, changed = asked.count(job)
    return setting, changed


@pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize("first", range(0, CASES, 20))
def test_engine_and_planner_make_the_same_choices(first: int, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(first, first + 20):
        sizes = draw(seed)
        plan = partial(planners_choice, sizes, monkeypatch, on_cpu=on_cpu)
        try:
            wanted = engines_choice(sizes, monkeypatch, on_cpu=on_cpu)
        except OutOfMemoryError:
            # The planner looks for a setting that the user may pass, and says so; or refuses as well.
            try:
                _, changed = plan()
                assert changed, sizes
            except OutOfMemoryError:
                pass
            continue
        setting, changed = plan()
        assert not changed, sizes
        found = {name: getattr(setting, name) for name in wanted}
        found["waves"] = list(setting.waves)
        if sizes.settings.targets is not None:  # further rounds may leave less room than the first one, which is here
            found["waves"] = found["waves"][: len(wanted["waves"])]
            assert found.pop("kept_graphs") <= wanted.pop("kept_graphs"), sizes
        assert found == wanted, sizes


def test_more_memory_never_fails_where_less_serves() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for seed in range(60):
            sizes = draw(seed)
            served = []
            for factor in (0.25, 0.5, 0.7, 1.0, 1.3, 1.7, 2.5, 4.0):
                settings = replace(sizes.settings, memory=int(factor * (sizes.settings.memory or 0)))
                try:
                    engines_choice(replace(sizes, settings=settings), patch, on_cpu=True)
                    served.append(True)
                except OutOfMemoryError:
                    served.append(False)
            assert served == sorted(served), sizes


def test_the_random_sizes_reach_every_rule() -> None:
    drawn = [draw(seed) for seed in range(CASES)]
    with pytest.MonkeyPatch.context() as patch:
        settled = []
        refused = 0
        for sizes in drawn:
            try:
                settled.append((sizes, planners_choice(sizes, patch, on_cpu=True)[0]))
            except OutOfMemoryError:
                refused += 1
    assert 5 < refused < CASES // 2
    for reached in (
        sum(setting.microbatch < sizes.samples for sizes, setting in settled),
        sum(len(setting.waves) > 1 for _, setting in settled),
        sum(setting.kept_graphs < setting.microbatches for _, setting in settled),
        sum(setting.streams_per_pass < 16 for _, setting in settled),
        sum(setting.curvature is not None and setting.curvature.place == "memory" for _, setting in settled),
        sum(setting.curvature is not None and setting.curvature.place == "disk" for _, setting in settled),
    ):
        assert reached >= 5, reached
