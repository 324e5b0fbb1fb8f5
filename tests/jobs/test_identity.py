"""Which changes make another job of it, what is said of them, and which leave it the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import RunFolderError

GENERATOR = torch.Generator().manual_seed(1)
INPUTS, TARGETS = torch.randn(12, 6, generator=GENERATOR), torch.randint(0, 4, (12,), generator=GENERATOR)
TARGETS[[0, 1, 6, 7]] = 1  # neither batch begins with class 0
TARGETS[[3, 9]] = 0
DATA = [(INPUTS[:6], TARGETS[:6]), (INPUTS[6:], TARGETS[6:])]


class Straight(torch.autograd.Function):
    """The identity, with a gradient that is scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


class Masked(nn.Module):
    def __init__(self, last: float) -> None:
        super().__init__()
        self.net = model()
        self.register_buffer("scale", torch.tensor([1.0, 1.0, 1.0, last]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale


class Sharpened(nn.Module):
    def __init__(self, sharpness: float, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return Straight.apply(self.function(x), self.sharpness)


def model(activation: nn.Module | None = None, eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16, eps=eps), activation or nn.GELU(), nn.Linear(16, 4))


def loss(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def the_same_loss(network: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(network(inputs), targets)


def scaled(factor: float) -> Callable[[nn.Module, Any], Tensor]:
    return lambda m, b: Straight.apply(loss(m, b), factor)


def decayed(strength: float) -> Callable[[nn.Module, Any], Tensor]:
    return lambda m, b: loss(m, b) + strength * sum(p.square().sum() for p in m.parameters())


def hooked(kind: str, hook: Callable[..., Any]) -> nn.Module:
    changed = model()
    getattr(changed[2], kind)(hook)
    return changed


def run(m: nn.Module, function: Any, out: Path | None, data: Any = DATA, **options: Any) -> he.Spectra:
    return he.slq(m, function, "parameter", data=data, steps=4, probes=1, check=False, out=out, **options)


CHANGES: dict[str, tuple[nn.Module, Any, nn.Module, Any, str]] = {
    "a class that is ignored": (
        model(),
        loss,
        model(),
        lambda m, b: F.cross_entropy(m(b[0]), b[1], ignore_index=0),
        r"loss of batch 0: \d\.\d+ there, \d\.\d+ here; loss of batch 1",
    ),
    "class weights": (
        model(),
        loss,
        model(),
        lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=torch.tensor([9.0, 1, 1, 1])),
        "loss of batch 0",
    ),
    "label smoothing": (
        model(),
        loss,
        model(),
        lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
        "loss of batch 0",
    ),
    "a small weight decay": (model(), loss, model(), decayed(1e-6), "loss of batch 0"),
    "a weight": (
        model(),
        loss,
        model(),
        lambda m, b: (loss(m, b) * len(b[0]), float((b[0] != INPUTS[6]).any(1).sum())),
        "weight of batch 1: 6.0 there, 5.0 here",
    ),
    "an epsilon": (model(), loss, model(eps=1e-6), loss, r"module 1 .*eps=1e-05.* there, .*eps=1e-06.* here"),
    "an activation's setting": (
        model(),
        loss,
        model(nn.GELU("tanh")),
        loss,
        r"module 2 GELU\(approximate='none'\) there, GELU\(approximate='tanh'\) here",
    ),
    "an activation": (model(nn.ReLU()), loss, model(nn.LeakyReLU(1e-7)), loss, r"module 2 ReLU\(.* there, LeakyReLU"),
    "a number in a module": (
        model(Sharpened(1.0)),
        loss,
        model(Sharpened(2.0)),
        loss,
        r"module 2 .*sharpness=1\.0\) there, .*sharpness=2\.0\) here",
    ),
    "a function in a module": (
        model(Sharpened(1.0)),
        loss,
        model(Sharpened(1.0, torch.sin)),
        loss,
        "module 2 .*tanh.* there, .*sin.* here",
    ),
    "a buffer": (Masked(1.0), loss, Masked(3.0), loss, "buffers: scale changed"),
    "a forward hook": (
        model(),
        loss,
        hooked("register_forward_hook", lambda module, args, output: output * 1.0),
        loss,
        "hooks of module 2 none there, <lambda>",
    ),
    "a backward hook": (
        model(),
        loss,
        hooked("register_full_backward_hook", lambda module, gradients, outer: None),
        loss,
        "hooks of module 2 none there, <lambda>",
    ),
    "a gradient that someone wrote": (model(), scaled(1.0), model(), scaled(2.0), "curvature of block 0.weight"),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_changed_job_is_refused_and_the_part_named(tmp_path: Path, change: str) -> None:
    first, first_loss, second, second_loss, words = CHANGES[change]
    run(first, first_loss, tmp_path)
    with pytest.raises(RunFolderError, match=f"holds another job .*{words}"):
        run(second, second_loss, tmp_path)


def test_a_changed_number_in_a_batch_is_named(tmp_path: Path) -> None:
    def weighted(m: nn.Module, b: dict[str, Any]) -> Tensor:
        return F.cross_entropy(m(b["x"]), b["y"]) * b["w"]

    data = [{"x": x, "y": y, "w": 1.0} for x, y in DATA]
    run(model(), weighted, tmp_path, data)
    with pytest.raises(RunFolderError, match="batch 1"):
        run(model(), weighted, tmp_path, [data[0], {**data[1], "w": 5.0}])


def test_changed_batches_are_counted_and_named(tmp_path: Path) -> None:
    run(model(), loss, tmp_path)
    with pytest.raises(RunFolderError, match="data: batch 1 of 2 changed"):
        run(model(), loss, tmp_path, [DATA[0], (DATA[1][0] + 1, DATA[1][1])])
    with pytest.raises(RunFolderError, match="data: 2 batches there, 1 here"):
        run(model(), loss, tmp_path, DATA[:1])


def test_in_double_precision_a_weight_decay_of_1e_10_is_seen(tmp_path: Path) -> None:
    run(model(), loss, tmp_path, precision="fp64")
    with pytest.raises(RunFolderError, match="loss of batch 0"):
        run(model(), decayed(1e-10), tmp_path, precision="fp64")


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_the_same_function_in_other_words_is_the_same_job(tmp_path: Path, precision: str) -> None:
    first = run(model(), loss, tmp_path, precision=precision)
    for other in (the_same_loss, functools.partial(loss), scaled(1.0)):
        again = run(model().train(), other, tmp_path, precision=precision)
        assert again.manifest == first.manifest
        assert all(np.array_equal(first[name].alphas, again[name].alphas) for name in first)


@pytest.mark.parametrize("options", [{"microbatch": 2}, {"memory": 10**9}])
def test_how_the_data_are_cut_is_no_part_of_it(tmp_path: Path, options: dict[str, int]) -> None:
    run(model(), loss, tmp_path)
    run(model(), the_same_loss, tmp_path, **options)


def test_a_job_without_data_is_known_by_its_one_loss(tmp_path: Path) -> None:
    run(model(), lambda m: m(INPUTS).square().mean(), tmp_path, None)
    run(model(), lambda m: m(INPUTS).square().mean(), tmp_path, None)
    with pytest.raises(RunFolderError, match="loss of batch 0"):
        run(model(), lambda m: m(INPUTS).square().mean() * 1.001, tmp_path, None)


def test_a_result_saved_by_hand_is_taken_for_the_same_code_only(tmp_path: Path) -> None:
    run(model(), loss, None).save(tmp_path)
    run(model(), loss, tmp_path)
    with pytest.raises(RunFolderError, match="loss: .*the_same_loss"):
        run(model(), the_same_loss, tmp_path)


def test_a_folder_of_an_earlier_version_is_refused_for_what_it_is(tmp_path: Path) -> None:
    spectra = run(model(), loss, None)
    spectra.manifest["identity"]["first_loss"] = 1.0
    spectra.save(tmp_path)
    with pytest.raises(RunFolderError, match="earlier hvp_engine.*Spectra.load"):
        run(model(), loss, tmp_path)
    assert he.Spectra.load(tmp_path)


class Counting(nn.Module):
    """Keeps what it has seen, and a label that is drawn for it."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.net = model()
        self.label, self.calls, self.seen = label, 0, torch.zeros(())
        self.widths = {name: len(name) for name in (label, "second", "third")}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


def test_a_model_that_was_used_in_between_is_the_same_job(tmp_path: Path) -> None:
    network, kept = Counting("7f3a"), []
    network.net[0].register_forward_hook(lambda module, args, output: kept.append(float(output.detach().mean())))
    first = run(network, loss, tmp_path)
    network(INPUTS)
    network.label = "09bc"
    assert run(network, loss, tmp_path).manifest == first.manifest


def test_batches_are_the_same_whatever_the_order_of_their_keys(tmp_path: Path) -> None:
    def keyed(network: nn.Module, batch: Any) -> Tensor:
        return loss(network, (batch["x"], batch["y"]))

    first = run(model(), keyed, tmp_path, [{"x": x, "y": y, "names": ["a", "b"] * 3} for x, y in DATA])
    again = run(model(), keyed, tmp_path, [{"names": ("a", "b") * 3, "y": y, "x": x} for x, y in DATA])
    assert again.manifest == first.manifest
    with pytest.raises(RunFolderError, match="data: batch 1"):
        run(model(), keyed, tmp_path, [{"x": x, "y": y, "names": ["a", "b"] * 3} for x, y in [DATA[0], DATA[0]]])
