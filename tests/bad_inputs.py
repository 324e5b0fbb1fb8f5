"""Values that users pass by mistake, argument by argument, for a small job that is right without them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bad_data import Changing, Failing, Lying, Once, Unreadable, batch, deep, recursive
from bad_values import AXES, FLAGS, NUMBERS, OPERATORS, PATHS, TOLERANCES, WORDS, Make, each
from torch import Tensor, nn


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


SIZE = 43  # parameters of `net`


class Raising(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.inner, self.error = nn.Linear(4, 3), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class Broken(torch.autograd.Function):
    """An operation whose backward raises an exception."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: BaseException) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise ctx.error


class FailingBackward(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.inner, self.error = nn.Linear(4, 3), error

    def forward(self, x: Tensor) -> Tensor:
        return Broken.apply(self.inner(x), self.error)


class Returning(nn.Module):
    """A model whose output is not what the loss takes."""

    def __init__(self, value: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.value = nn.Linear(4, 3), value

    def forward(self, x: Tensor) -> Any:
        return self.value(self.inner(x))


class Meddling(nn.Module):
    """A model that writes to its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.inner.weight.add_(1.0)
        out: Tensor = self.inner(x)
        return out


def with_value(value: float) -> nn.Module:
    model = net()
    with torch.no_grad():
        next(model.parameters()).fill_(value)
    return model


def frozen() -> nn.Module:
    return net().requires_grad_(False)


def hooked() -> nn.Module:
    model = net()
    next(model.parameters()).register_hook(lambda gradient: 2 * gradient)
    return model


def complex_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64))


class Mute(Exception):
    """An exception whose own text fails."""

    def __str__(self) -> str:
        raise ValueError


class MuteFailure(Mute, RuntimeError):
    """The same, of the kind that PyTorch's own are."""


ERRORS = (ValueError("no"), TypeError(), KeyError("logits"), RuntimeError("a\nb"), AssertionError(), StopIteration())
ERRORS += (MemoryError(), RecursionError("deep"), NotImplementedError(), ZeroDivisionError("x"), OSError(5, "disk"))

MODELS: list[Make] = [
    *each(None, 3, "model", nn.Linear, [net], {}),
    lambda: lambda x: x,
    nn.Identity,
    lambda: nn.LazyLinear(3),
    lambda: net().to("meta"),
    complex_model,
    frozen,
    hooked,
    Meddling,
    lambda: nn.Sequential(net(), nn.Dropout(0.1)).train(),
    lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train(),
    *(lambda value=value: with_value(value) for value in (float("nan"), float("inf"), 1e38)),
    *(lambda error=error: Raising(error) for error in (*ERRORS, MuteFailure())),
    *(lambda error=error: FailingBackward(error) for error in (*ERRORS, Mute(), MuteFailure())),
    lambda: Returning(lambda y: None),
    lambda: Returning(lambda y: {"logits": y}),
    lambda: Returning(lambda y: y.tolist()),
    lambda: Returning(lambda y: y.detach()),
    lambda: Returning(lambda y: y[:, :1]),
    lambda: Returning(lambda y: y.to(torch.int64)),
    lambda: Returning(lambda y: y.sum() * 0 + float("nan")),
    lambda: net().to(torch.bfloat16),
    lambda: net().double(),
]


def loss_returning(value: Callable[[Tensor], Any]) -> Callable[[nn.Module, Any], Any]:
    return lambda model, batch: value(mean_loss(model, batch))


def loss_raising(error: BaseException) -> Callable[[nn.Module, Any], Any]:
    def loss(model: nn.Module, batch: Any) -> Any:
        raise error

    return loss


def drawing(model: nn.Module, batch: Any) -> Tensor:
    return mean_loss(model, batch) * (1 + 1e-3 * torch.rand(()))


def rarely_drawing(model: nn.Module, batch: Any) -> Tensor:
    return mean_loss(model, batch) * (2.0 if float(torch.rand(())) < 0.01 else 1.0)


def writing_to_the_batch(model: nn.Module, batch: Any) -> Tensor:
    batch[0].mul_(1.01)
    return mean_loss(model, batch)


def in_no_grad(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return mean_loss(model, batch)


async def asynchronous(model: nn.Module, batch: Any) -> Tensor:
    await asyncio.sleep(0)
    return mean_loss(model, batch)


def yielding(model: nn.Module, batch: Any) -> Iterator[Tensor]:
    yield mean_loss(model, batch)


def stepping(model: nn.Module, batch: Any) -> Tensor:
    loss = mean_loss(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1)
    return loss


RESULTS: list[Callable[[Tensor], Any]] = [
    lambda t: None,
    lambda t: "loss",
    lambda t: t.item(),
    lambda t: t.detach(),
    lambda t: t.expand(3),
    lambda t: t.to(torch.complex64),
    lambda t: t.long(),
    lambda t: t * float("nan"),
    lambda t: t / 0,
    lambda t: (t, t, t),
    lambda t: (t,),
    lambda t: (),
    lambda t: (t, None),
    lambda t: (t, "8"),
    lambda t: (t, -8),
    lambda t: (t, 0),
    lambda t: (t, 0.625),
    lambda t: (t, float("nan")),
    lambda t: (t, t),
    lambda t: (t, torch.ones(3)),
    lambda t: (t, 1j),
    lambda t: {"loss": t},
    lambda t: [t, [t]],
]
LOSSES: list[Make] = [
    *each(None, 3, "cross_entropy", nn.CrossEntropyLoss, F.mse_loss, max),
    nn.CrossEntropyLoss,
    *(lambda value=value: loss_returning(value) for value in RESULTS),
    *(
        lambda error=error: loss_raising(error)
        for error in (*ERRORS, Mute(), MuteFailure(), torch.OutOfMemoryError("no room"))
    ),
    *each(
        drawing,
        rarely_drawing,
        writing_to_the_batch,
        in_no_grad,
        asynchronous,
        yielding,
        stepping,
        lambda model: 0,
        lambda: 0,
        lambda a, b, c: 0,
    ),
]


DATA: list[Make] = [
    *each(None, 3, "data", 1.5, object(), [], (), {}, set(), [None], [[]], [()], [{}]),
    *each([3], ["text"], [["text", "more"]], [[[]]]),
    lambda: batch()[0],
    batch,
    lambda: list(batch()),
    lambda: {"x": batch()},
    lambda: iter([batch()]),
    lambda: (batch() for _ in range(2)),
    recursive,
    lambda: [recursive()],
    lambda: [(torch.empty(0, 4), torch.empty(0, dtype=torch.long))],
    lambda: [batch(), (torch.empty(0, 4), torch.empty(0, dtype=torch.long))],
    lambda: [batch(8), batch(3)],
    lambda: [(batch(8)[0], batch(5)[1])],
    lambda: [(batch()[0] * float("nan"), batch()[1])],
    lambda: [(batch()[0].long(), batch()[1])],
    lambda: [(batch()[0].double(), batch()[1])],
    lambda: [(batch()[0].half(), batch()[1])],
    lambda: [(batch()[0].to(torch.complex64), batch()[1])],
    lambda: [(batch()[0], batch()[1] + 7)],
    lambda: [(batch()[0], batch()[1] - 5)],
    lambda: [(batch()[0], batch()[1].float())],
    lambda: [(batch()[0], batch()[1].tolist())],
    lambda: [(batch()[0].numpy(), batch()[1].numpy())],
    lambda: [(batch()[0].to("meta"), batch()[1])],
    lambda: [(batch()[0].to_sparse(), batch()[1])],
    lambda: [(batch()[0][:, :3], batch()[1])],
    lambda: [batch()[0]],
    lambda: [batch(), None],
    lambda: [batch(), 3],
    *(lambda error=error: Failing(0, error) for error in ERRORS[:6]),
    *(lambda error=error: Failing(2, error) for error in ERRORS[:6]),
    *(lambda error=error: Unreadable(error) for error in (*ERRORS, Mute(), MuteFailure())),
    *(lambda length=length: Lying(length) for length in (-3, 0, 7)),
    lambda: [deep(5000)],
    lambda: [(*batch(), recursive())],
    Changing,
    Once,
]

VECTORS: list[Make] = [
    *each(None, 3, [], {}, {"full": None}, {"full": [1.0] * SIZE}, {"fulll": None}),
    lambda: torch.ones(1, SIZE),
    lambda: {"full": np.ones((1, SIZE))},
    *(
        lambda shape=shape: {"full": torch.ones(shape)}
        for shape in ((), (SIZE,), (1, SIZE - 1), (SIZE, 1), (1, 1, SIZE), (0, SIZE), (1, 0))
    ),
    *(
        lambda dtype=dtype: {"full": torch.ones(1, SIZE).to(dtype)}
        for dtype in (torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64, torch.uint8)
    ),
    *(lambda value=value: {"full": torch.full((2, SIZE), value)} for value in (float("nan"), float("inf"), 1e38, 0.0)),
    lambda: {"full": torch.ones(1, SIZE, requires_grad=True)},
    lambda: {"full": torch.ones(1, SIZE).to_sparse()},
    lambda: {"full": torch.ones(1, SIZE, device="meta")},
    lambda: {"full": torch.nested.nested_tensor([torch.ones(SIZE)], layout=torch.jagged)},
    lambda: {"full": torch.ones(SIZE, 2).T},
    lambda: {"full": torch.ones(1, 1).expand(2, SIZE)},
    lambda: {0: torch.ones(1, SIZE)},
    lambda: {"full": torch.ones(1, SIZE), "nothing": torch.ones(1, 1)},
]

BLOCKS: list[Make] = [
    *each(3, "fulll", "", [], {}, [3], [None], {"a": []}, {"a": 3}, {"a": "x*"}, [""]),
    *each({3: "*"}, {"": "*"}, {None: "*"}, ["0.weight", "0.weight"], [["0.weight"]]),
    *each({"a": ["["]}, {"a": {"b": "*"}}, 1.5, True, object(), b"full", [b"0.weight"]),
    lambda: [batch()],
    lambda: batch()[0],
    lambda: iter(["0.weight"]),
]


def by_name(value: Callable[[Tensor], Any]) -> Make:
    """Make something for every parameter of `net`."""
    return lambda: {name: value(parameter.detach()) for name, parameter in net().named_parameters()}


PRECONDITIONS: list[Make] = [
    *each(3, True, "adam", [], {}, object(), {"0.weight": 3}, {3: torch.ones(3)}, torch.ones(SIZE), torch.optim.Adam),
    *(by_name(lambda p, value=value: value) for value in (1.0, 0.0, -1.0, float("nan"), 1e-45, 1e38, None, "1", True)),
    *(by_name(lambda p, value=value: torch.full_like(p, value)) for value in (1.0, 0.0, float("inf"), 1e-45, 1e38)),
    by_name(lambda p: torch.ones_like(p).flatten()),
    by_name(lambda p: torch.ones_like(p).long()),
    by_name(lambda p: torch.ones_like(p).numpy()),
    by_name(lambda p: torch.ones_like(p).to_sparse()),
    by_name(lambda p: torch.ones_like(p, device="meta")),
    by_name(lambda p: torch.ones_like(p, dtype=torch.complex64)),
    lambda: torch.optim.Adam(net().parameters()),
    lambda: torch.optim.SGD(net().parameters(), lr=0.1),
]

ARGUMENTS: dict[str, list[Make]] = {
    "model": MODELS,
    "loss": LOSSES,
    "data": DATA,
    "vectors": VECTORS,
    "blocks": BLOCKS,
    "operator": OPERATORS,
    "precondition": PRECONDITIONS,
    "tolerance": TOLERANCES,
    "distributed": AXES,
    "processes": NUMBERS,
    "first_probe": NUMBERS,
    "groups": NUMBERS,
    "data_error": FLAGS,
    "steps": NUMBERS,
    "probes": NUMBERS,
    "seed": NUMBERS,
    "microbatch": NUMBERS,
    "memory": NUMBERS,
    "seconds": NUMBERS,
    "batches": NUMBERS,
    "tokens": NUMBERS,
    "k": NUMBERS,
    "maxiter": NUMBERS,
    "products": NUMBERS,
    "which": WORDS,
    "method": WORDS,
    "head_curvature_tolerance": NUMBERS,
    "precision": WORDS,
    "distribution": WORDS,
    "reorthogonalize": WORDS,
    "basis": WORDS,
    "device": WORDS,
    "out": PATHS,
    "progress": FLAGS,
    "check": FLAGS,
    "head_curvature": FLAGS,
}
