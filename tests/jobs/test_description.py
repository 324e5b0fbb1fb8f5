"""Models and functions in words: the same for the same thing, others for others."""

from __future__ import annotations

import copy
import enum
import functools
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hvp_engine.jobs.description import describe_function, describe_hooks, describe_loss, describe_modules

FACTOR = 2.0


@dataclass
class Config:
    width: int = 3
    schedule: list[float] = field(default_factory=lambda: [0.1, 0.2])
    folder: str = "/data/today"
    transformers_version: str = "5.0"


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.handle = object()
        self.inner = nn.Linear(2, 2)
        self.act = torch.tanh
        self.cache = torch.zeros(3)


class Criterion:
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, model: nn.Module, batch: Any) -> float:
        return self.alpha


def helper(x: float) -> float:
    return x * FACTOR


def calling(x: float) -> float:
    return helper(x)


def closing_over(value: Any) -> Callable[[float], Any]:
    return lambda x: x * value


def test_modules_are_described_by_class_and_settings_and_a_shared_configuration_once() -> None:
    config = Config()
    found = describe_modules(nn.Sequential(Block(config), Block(config)))
    assert found[""] == "Sequential()"
    assert found["0"].startswith("Block(act=") and "config=Config{" in found["0"] and "'width': 3" in found["0"]
    assert "config" not in found["1"]
    assert found["0.inner"] == "Linear(in_features=2, out_features=2, bias=True)"
    assert "0x" not in str(found) and "cache" not in str(found)


def test_where_and_by_whom_something_was_written_is_no_setting() -> None:
    one, other = (
        describe_modules(Block(Config(folder=folder, transformers_version=version)))
        for folder, version in (("/data/today", "5.0"), ("/data/tomorrow", "5.1"))
    )
    assert one == other
    assert one != describe_modules(Block(Config(schedule=[0.1, 0.3])))


def test_tools_that_a_module_holds_are_no_settings() -> None:
    module = nn.Linear(2, 2)
    plain = describe_modules(module)
    module.log, module.library = logging.getLogger("model"), torch
    module.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert describe_modules(module) == plain
    module.options = SimpleNamespace(slope=0.1)
    assert describe_modules(module)[""].endswith("options=SimpleNamespace{'slope': 0.1})")


def test_a_module_that_cannot_show_itself_is_described_all_the_same() -> None:
    class Shy(nn.Module):
        def extra_repr(self) -> str:
            raise ValueError("not now")

    assert describe_modules(Shy()) == {"": "Shy()"}


def test_hooks_of_modules_and_parameters_are_listed_in_order() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert describe_hooks(model) == {}
    model.register_forward_pre_hook(lambda module, args: None)
    model[0].weight.register_hook(lambda gradient: gradient)
    model[0].weight.register_hook(closing_over(torch.ones(2, 2)))
    found = describe_hooks(model)
    assert list(found) == ["module", "parameter 0.weight"]
    assert len(found["parameter 0.weight"]) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (closing_over(1.0), closing_over(2.0)),
        (closing_over(torch.ones(2)), closing_over(torch.tensor([1.0, 2.0]))),
        (closing_over([1, {"a": 2}]), closing_over([1, {"a": 3}])),
        (closing_over(helper), closing_over(calling)),
        (functools.partial(helper, 1.0), functools.partial(helper, 2.0)),
        (Criterion(1.0), Criterion(2.0)),
        (lambda x: x + 1, lambda x: x - 1),
        (lambda x, scale=1.0: x * scale, lambda x, scale=2.0: x * scale),
    ],
)
def test_functions_that_do_something_else_are_told_apart(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    assert describe_function(one) != describe_function(other)
    assert describe_function(one) == describe_function(one)


def test_equal_functions_made_twice_are_the_same() -> None:
    assert describe_function(closing_over(torch.ones(2))) == describe_function(closing_over(torch.ones(2)))
    assert describe_function(Criterion(1.0)) == describe_function(Criterion(1.0))


def test_what_a_function_calls_and_reads_in_its_module_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_function(calling)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert describe_function(calling) != before


def test_a_function_that_refers_to_itself_has_an_end() -> None:
    def recursive(depth: int) -> int:
        return recursive(depth - 1)

    nested: list[Any] = [recursive]
    nested.append(nested)
    assert describe_function(closing_over(nested)) == describe_function(closing_over(nested))


class Choice(enum.Enum):
    RELU = functools.partial(torch.relu)


def copy_of(function: types.FunctionType) -> types.FunctionType:
    return types.FunctionType(function.__code__, function.__globals__)


class Told(nn.Module):
    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.choice = Choice.RELU
        self.keyed = {helper: 1, Config: 2}
        self.sizes = {name: len(name) for name in order}
        self.wrapped = functools.partial(helper, Choice.RELU)

    def extra_repr(self) -> str:
        return f"function={helper}, tool={object()}, words={self.wrapped}"


def test_neither_an_address_nor_the_order_of_a_mapping_is_a_setting() -> None:
    found = describe_modules(Told(["b", "a", "cc"]))
    assert "0x" not in str(found) and "function=<function helper>" in found[""]
    assert found == describe_modules(Told(["cc", "a", "b"]))
    assert found != describe_modules(Told(["ccc", "a", "b"]))


def test_the_digest_of_a_function_does_not_depend_on_where_objects_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_function(closing_over(Choice.RELU))
    monkeypatch.setattr(Choice.RELU, "_value_", functools.partial(copy_of(helper)))
    first = describe_function(closing_over(Choice.RELU))
    monkeypatch.setattr(Choice.RELU, "_value_", functools.partial(copy_of(helper)))
    assert describe_function(closing_over(Choice.RELU)) == first != before


class Weighted:
    """A loss with class weights, and whatever else."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def method(self, model: nn.Module, batch: Any) -> Any:
        return self(model, batch)


ONES, OTHERS = torch.ones(3), torch.tensor([1.0, 5.0, 9.0])
CRITERION = nn.CrossEntropyLoss(weight=ONES)


def teacher(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 3)


def calling_a_global(model: nn.Module, batch: Any) -> Any:
    return CRITERION(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Weighted(weight=ONES), Weighted(weight=OTHERS)),
        (Weighted(weight=ONES.numpy()), Weighted(weight=OTHERS.numpy())),
        (Weighted(weights={"a": [ONES]}), Weighted(weights={"a": [OTHERS]})),
        (Weighted(weight=ONES).method, Weighted(weight=OTHERS).method),
        (Weighted(teacher=teacher(0)), Weighted(teacher=teacher(1))),
        (closing_over(nn.CrossEntropyLoss(weight=ONES)), closing_over(nn.CrossEntropyLoss(weight=OTHERS))),
        (closing_over(nn.CrossEntropyLoss()), closing_over(nn.CrossEntropyLoss(label_smoothing=0.1))),
        (closing_over(nn.Sequential(teacher(0))), closing_over(nn.Sequential(teacher(1)))),
        (closing_over(Weighted(weight=ONES)), closing_over(Weighted(weight=OTHERS))),
        (functools.partial(helper, x=Weighted(weight=ONES)), functools.partial(helper, x=Weighted(weight=OTHERS))),
    ],
)
def test_losses_that_hold_other_tensors_are_told_apart(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    model = nn.Linear(2, 3)
    assert describe_loss(one, model) == describe_loss(one, model)
    assert describe_loss(copy.deepcopy(one), model) == describe_loss(one, model)
    assert describe_loss(one, model) != describe_loss(other, model)


def test_a_module_that_a_loss_has_as_a_global_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_loss(calling_a_global, nn.Linear(2, 3))
    monkeypatch.setitem(globals(), "CRITERION", nn.CrossEntropyLoss(weight=OTHERS))
    assert describe_loss(calling_a_global, nn.Linear(2, 3)) != before


def test_the_model_itself_and_the_latest_loss_are_no_part_of_a_loss() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    for loss in (Weighted(model=model), closing_over(model), Weighted(head=model[0])):
        before = describe_loss(loss, model)
        assert before == describe_function(loss)
        with torch.no_grad():
            model[0].bias.add_(1.0)
        assert describe_loss(loss, model) == before
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert describe_loss(closing_over([optimizer, torch]), model) == describe_function(closing_over([optimizer, torch]))
    loss = Weighted(weight=ONES)
    before = describe_loss(loss, model)
    loss.latest = model(torch.ones(1, 2)).sum()
    assert describe_loss(loss, model) == before


@pytest.mark.parametrize(
    "loss",
    [helper, calling, closing_over(2.0), closing_over(torch.ones(2)), Criterion(1.0), functools.partial(helper, 1.0)],
)
def test_a_loss_without_such_things_has_the_digest_that_older_run_folders_have(loss: Callable[..., Any]) -> None:
    assert describe_loss(loss, nn.Linear(2, 3)) == describe_function(loss)
