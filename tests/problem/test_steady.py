"""The caller's settings and hooks: autocast, defaults, gradient hooks, forward hooks, wrappers."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import dense_hessian, mlp
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, ObjectiveError
from hvp_engine.problem.obstacles import obstacles

CASE = mlp()
VECTORS = {"full": torch.ones(1, 111)}
EXACT = (dense_hessian(CASE) @ torch.ones(111, dtype=torch.float64))[None]
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-5, "fp64": 1e-12, "bf16": 0.05}


def error(found: Tensor, exact: Tensor = EXACT) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def product(model: nn.Module = CASE.model, loss: Any = CASE.loss, **options: Any) -> Tensor:
    found: Tensor = he.hvp(model, loss, VECTORS, data=CASE.data, **options)["full"]
    return found


def bfloat16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Inside(nn.Module):
    """A network that switches autocast on for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(CASE.model)

    def forward(self, x: Tensor) -> Tensor:
        with bfloat16():
            found: Tensor = self.net(x)
        return found


@pytest.mark.parametrize("precision", TOLERANCE)
def test_autocast_around_the_call_changes_nothing(precision: Any) -> None:
    with bfloat16():
        inside = product(precision=precision)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside, product(precision=precision))
    assert error(inside) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_autocast_inside_the_model_or_the_loss_gives_way_to_the_precision(precision: Any) -> None:
    def casting(model: nn.Module, batch: Any) -> Tensor:
        with bfloat16():
            return F.cross_entropy(model(batch[0]), batch[1])

    for model, loss in ((Inside(), CASE.loss), (CASE.model, casting)):
        assert error(product(model, loss, precision=precision)) < TOLERANCE[precision]
    if precision == "fp32":
        assert he.doctor(Inside(), CASE.loss, data=CASE.data, seconds=1).ok


def test_bfloat16_jobs_inside_a_callers_autocast_keep_no_casts_of_old_parameters() -> None:
    model = copy.deepcopy(CASE.model)
    with bfloat16():
        operator = he.HessianOperator(model, CASE.loss, data=CASE.data, precision="bf16")
        operator.matmat(VECTORS)
        with torch.no_grad():
            model[0].weight.mul_(2)
        found = operator.matmat(VECTORS)["full"]
    assert torch.equal(found, product(model, precision="bf16"))


@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, lambda: torch.autograd.set_grad_enabled(False)]
)
def test_gradient_modes_of_the_caller_are_shielded(around: Any) -> None:
    with around():
        found = product()
        spectrum = he.slq(CASE.model, CASE.loss, data=CASE.data, steps=3, probes=1, progress=False)["full"]
    assert error(found.clone()) < 1e-5
    assert spectrum.nodes.max() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_default_dtype_is_shielded(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = product()
    finally:
        torch.set_default_dtype(before)
    assert error(found) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_hooks_on_gradients_are_refused_in_every_precision_and_the_fix_works(precision: Any) -> None:
    model = copy.deepcopy(CASE.model)
    handle = model[0].weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ConfigurationError, match=r"registered on 0\.weight.*handle\.remove.*wandb\.unwatch"):
        product(model, precision=precision)
    with pytest.raises(ConfigurationError, match="Gradient hooks"):
        he.slq(model, CASE.loss, data=CASE.data, precision=precision, steps=2, probes=1, progress=False)
    with pytest.raises(ConfigurationError, match="Gradient hooks"):
        he.plan(model, CASE.loss, data=CASE.data, precision=precision)
    assert "gradient-hook" in [f.code for f in he.doctor(model, CASE.loss, data=CASE.data, seconds=1).findings]
    handle.remove()
    assert error(product(model, precision=precision)) < 1e-5


def test_hooks_that_run_after_a_gradient_is_accumulated_do_not_run() -> None:
    model = copy.deepcopy(CASE.model)
    ran: list[Any] = []
    model[0].weight.register_post_accumulate_grad_hook(ran.append)
    assert error(product(model)) < 1e-5
    assert not ran


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_backward_hooks_of_modules_may_watch_and_must_not_change_gradients(precision: Any) -> None:
    model = copy.deepcopy(CASE.model)
    ran: list[Any] = []
    model[2].register_full_backward_hook(lambda module, inputs, outputs: ran.append(module))
    assert error(product(model, precision=precision)) < 1e-5
    assert len(ran) <= 1  # to see whether it changes something
    assert len(model[2]._backward_hooks) == 1
    handle = model[2].register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
    for call in (product, lambda m, **o: he.slq(m, CASE.loss, data=CASE.data, steps=2, progress=False, **o)):
        with pytest.raises(ConfigurationError, match="backward hook of a module changes the gradient"):
            call(model, precision=precision)
    report = he.doctor(model, CASE.loss, data=CASE.data, seconds=1)
    assert "unsuitable-model" in [finding.code for finding in report.findings]
    handle.remove()
    assert error(product(model, precision=precision)) < 1e-5


def test_a_hook_that_raises_is_told_apart_from_the_model() -> None:
    def fail(module: nn.Module, inputs: Any, outputs: Any) -> None:
        raise KeyError("of the hook")

    model = copy.deepcopy(CASE.model)
    model[2].register_full_backward_hook(fail)
    with pytest.raises(ObjectiveError, match="with the backward hooks of modules raised KeyError: 'of the hook'"):
        product(model)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_forward_hooks_belong_to_the_function(precision: Any) -> None:
    model = copy.deepcopy(CASE.model)
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(CASE.model)

        def forward(self, x: Tensor) -> Any:
            first, tanh, second, *rest = self.net
            return nn.Sequential(*rest)(second(tanh(2 * first(x)) + 1))

    torch.testing.assert_close(product(model, precision=precision), product(Written(), precision=precision))


def test_a_copy_that_reaches_back_to_the_model_itself_is_refused() -> None:
    model = copy.deepcopy(CASE.model)
    model[0].register_forward_hook(lambda module, inputs, output: output * model[4].weight.sum())
    with pytest.raises(ConfigurationError, match=r"uses the parameter '4\.weight' of the model itself"):
        he.hvp(model, CASE.loss, VECTORS, data=CASE.data[:1], precision="fp64")
    data = [(x.double(), y) for x, y in CASE.data[:1]]  # as the message recommends
    assert he.hvp(model.double(), CASE.loss, VECTORS, data=data, precision="fp64")["full"].norm() > 0


class Wrapper(nn.Module):
    """A wrapper by one of the known names, which needs no processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DistributedDataParallel", "its own share .*model.module.* or call slq with distributed='auto'"),
        ("DataParallel", "its own share .*model.module"),
        ("FullyShardedDataParallel", "a part of each parameter .*Gather the weights"),
        ("FSDPModule", "a part of each parameter .*Gather the weights"),
    ],
)
def test_wrappers_for_several_processes_are_refused_by_every_call(name: str, why: str) -> None:
    wrapped = type(name, (Wrapper,), {})(CASE.model)
    for model in (wrapped, nn.Sequential(wrapped)):
        for call in (
            product,
            lambda m: he.slq(m, CASE.loss, data=CASE.data, steps=2, progress=False),
            lambda m: he.plan(m, CASE.loss, data=CASE.data),
        ):
            with pytest.raises(ConfigurationError, match=f"wrapped in {name}.*{why}"):
                call(model)
        report = he.doctor(model, CASE.loss, data=CASE.data, seconds=1)
        assert [finding.code for finding in report.findings] == ["distributed-wrapper", "not-examined"]
        assert not report.ok
    assert error(product(wrapped.module)) < 1e-5


class DTensor(nn.Parameter):
    """A parameter by the name of those of tensor parallelism, which needs no processes."""


@pytest.mark.parametrize(
    ("attributes", "kind", "way"),
    [
        ({}, DTensor, "DTensor"),
        ({"ds_id": 0}, nn.Parameter, "DeepSpeed's stage 3"),
        ({"_is_flat_param": True}, nn.Parameter, "FullyShardedDataParallel"),
        ({"_fsdp_flattened": True}, nn.Parameter, "FullyShardedDataParallel"),
    ],
)
def test_parameters_of_which_a_process_has_a_part_are_refused(
    attributes: dict[str, Any], kind: type[nn.Parameter], way: str
) -> None:
    model = copy.deepcopy(CASE.model)
    parted = kind(model[0].weight.detach())
    for name, value in attributes.items():
        setattr(parted, name, value)
    model[0].weight = parted
    with pytest.raises(ConfigurationError, match=rf"0\.weight are shared out by {way}.*Gather the weights"):
        product(model)
    report = he.doctor(model, CASE.loss, data=CASE.data, seconds=1)
    assert [finding.code for finding in report.findings] == ["distributed-wrapper", "not-examined"]


def test_ordinary_models_have_no_obstacles() -> None:
    assert not list(obstacles(CASE.model))
    with contextlib.suppress(RuntimeError):  # a machine without GPUs makes none
        assert [o.code for o in obstacles(nn.DataParallel(CASE.model))] == ["distributed-wrapper"]
