"""The objective L(theta) = (sum of batch totals) / (sum of batch weights), evaluated deterministically."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine.errors import (
    HvpEngineError,
    NonDeterministicError,
    NotFiniteError,
    ObjectiveError,
)
from hvp_engine.ops.head.room import HeadRoom, granted
from hvp_engine.ops.swap import twice_differentiable
from hvp_engine.problem import batches
from hvp_engine.problem.attention_switches import math_attention
from hvp_engine.problem.checks import check_ingredients, refuse_unusable
from hvp_engine.problem.cuts import Cut
from hvp_engine.problem.looking import needs_gradients
from hvp_engine.problem.model_state import ModelState, turn
from hvp_engine.problem.precision import Precision, check_precision, forward_mode, product_mode, working_dtype
from hvp_engine.problem.product_switches import is_ieee_on_cpu
from hvp_engine.problem.randomness import UndisturbedData
from hvp_engine.problem.reading import read, refuse_exhausted
from hvp_engine.problem.repetition import FirstValue, Sight
from hvp_engine.problem.steady import Key, SteadyLoss
from hvp_engine.problem.tree import leaves
from hvp_engine.problem.watch import HeldData, ModelWatch
from hvp_engine.problem.weighing import as_total
from hvp_engine.problem.working_copy import working_copy
from hvp_engine.system.failures import pass_on
from hvp_engine.system.formatting import raised
from hvp_engine.system.measured_graph import build_and_weigh
from hvp_engine.system.phases import phase

Loss = Callable[..., Any]


@dataclass(frozen=True)
class MicroBatch:
    """A piece of the data small enough to be differentiated in one go.

    Attributes:
        key: Position as (batch number, first sample), the same in every sweep.
        batch: The batch on the model's device, or ``None`` where the loss takes no data.
        is_sample: Whether it stands for others while their memory is measured, or what it is; no result is made of it.
        blocks: Names of the blocks that its graph has to serve; None for all of them.
        is_kept: Whether its graph stays alive between sweeps.
    """

    key: tuple[int, int]
    batch: Any
    is_sample: bool = False
    blocks: frozenset[str] | None = None
    is_kept: bool = False

    @property
    def identity(self) -> Key | None:
        """Batch, first sample and samples; None for a piece that is measured and is no part of a sweep."""
        number, start = self.key
        return None if self.is_sample else (number, start, batches.leading(self.batch) or 0)


class Objective:
    """A loss, a model and data, made weighted and deterministic.

    The user's model is never changed: when its dtype differs from the working dtype of ``precision`` a converted
    copy is used, and the loss is called with that copy.

    Attributes:
        source: The user's model.
        head_room: How much of a head's logits exists at once; None where no job has set it.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: Iterable[Any] | None, precision: Precision) -> None:
        """Check the ingredients.

        Args:
            model: The network; its mode (train or eval) is respected.
            loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None; returns the mean over its batch as
                a scalar, or ``(total, weight)``.
            data: Re-iterable of batches.
            precision: Arithmetic of the products.

        Raises:
            ConfigurationError: Unknown precision, a model or loss that is none, or the model cannot be copied in the
                working dtype, is on the meta device, or was made in inference mode.
            ObjectiveError: The data is empty or can be read only once.
            NonDeterministicError: A BatchNorm layer is in train mode.
        """
        check_precision(precision)
        check_ingredients(model, loss, data)
        refuse_unusable(model)
        self.precision = precision
        self.loss, self.source = loss, model
        self.dtype = working_dtype(precision)
        with turn(model):
            self.model = working_copy(model, self.dtype)
            self.watch = ModelWatch(model, self.model, self.dtype)
        self._cast = self.model is not model
        first = next(iter(model.parameters()), None)
        self.device = first.device if first is not None else torch.device("cpu")
        self.data = None if data is None else UndisturbedData(data)
        self.held_data = HeldData()
        state = ModelState(self.model, self.watch.walk if self.model is model else None)
        self._steady = SteadyLoss(model, state, loss, precision)
        self.fused = twice_differentiable()
        self.head_room: HeadRoom | None = None
        self._digests: list[tuple[str, tuple[batches.Entry, ...]]] = []
        self._complete = False
        self.declares_weight: bool | None = None  # whether the loss returns (total, weight); None before it is called
        self.weight_shown = False  # whether a weight that the loss returns was seen to be one, on the data
        self._needs_gradients: bool | None = None  # to be looked at; unknown so far
        self.seen: Sight | None = None  # what the first evaluation made
        self._first = FirstValue()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The working copy's parameters by canonical name."""
        return dict(self.model.named_parameters())

    def parameters_named(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Return some of the parameters, in the order of their names; the model is walked once."""
        found = self.parameters
        return {name: found[name] for name in names}

    @property
    def data_digests(self) -> list[str]:
        """Digest of every batch; available after the first complete pass."""
        return [digest for digest, _ in self._digests]

    @property
    def layouts(self) -> list[tuple[batches.Entry, ...]]:
        """What every batch is made of; available after the first complete pass."""
        return [layout for _, layout in self._digests]

    def batches(self, wanted: Container[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Yield the number and content of every batch, on the model's device, checked against the first pass.

        Args:
            wanted: Numbers of the batches that are yielded and checked, once all were; None for all.

        Raises:
            ObjectiveError: There is no batch, or no end of batches.
            NonDeterministicError: The data differs from the first pass.
        """
        if self.data is None:
            yield 0, None
            return
        count = 0
        dtype = self.dtype if self._cast else None
        for number, batch in enumerate(self.data if self._complete else read(self.data)):
            count += 1
            if wanted is not None and number not in wanted:
                continue
            self._verify(number, batch)
            moved = batches.moved(batch, self.device, dtype)
            if self.data.kept and any(a is not b for (_, a), (_, b) in zip(leaves(batch), leaves(moved), strict=True)):
                self.held_data.hold_source(number, batch)
            yield number, moved
        if count == 0:
            raise (
                refuse_exhausted(len(self._digests))
                if self._digests
                else ObjectiveError("data is empty: it yields no batch.")
            )
        if self._complete and count != len(self._digests):
            raise NonDeterministicError(
                f"data had {len(self._digests)} batches in the first sweep and {count} in this one; "
                "it must yield the same batches every time: pass a list, or a DataLoader with shuffle=False."
            )
        self._complete = True

    @phase("reading the data")
    def largest_batch(self) -> Any:
        """Return the batch with the most numbers in it; None where the loss takes no data."""
        return batches.largest(batch for _, batch in self.batches())

    def _verify(self, number: int, batch: Any) -> None:
        batches.check_values(number, batch)
        digest, layout = batches.fingerprint(batch), batches.layout(batch)
        if number >= len(self._digests):
            if self._complete:
                raise NonDeterministicError(
                    f"data yields more batches than in the first sweep ({len(self._digests)}); "
                    "it must yield the same batches every time: pass a list."
                )
            self._digests.append((digest, layout))
            return
        known, known_layout = self._digests[number]
        if digest == known:
            return
        shapes, known_shapes = batches.shapes(layout), batches.shapes(known_layout)
        what = (
            f"shapes {shapes} instead of {known_shapes}" if shapes != known_shapes else "the same shapes, other values"
        )
        raise NonDeterministicError(
            f"Batch {number} changed between sweeps ({what}). The Hessian of a changing loss is not defined: use "
            "shuffle=False and no random augmentation, or pass list(data)."
        )

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Hold gradients on, the product modes of ``precision`` in force and the fused operations swapped in.

        Wraps every engine computation, backward passes too: activation checkpointing recomputes inside those. What
        is not swapped takes the math path of attention, since fused kernels have no second derivative on any device.
        """
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            product_mode(self.precision),
            math_attention(),
            granted(self.head_room),
            self._steady.held(),
            self.fused if self._steady.depth == 1 else nullcontext(),  # twice would cost twice
        ):
            yield

    @contextlib.contextmanager
    def quick_arithmetic(self) -> Iterator[None]:
        """Hold what products need that run neither the model nor autograd: the modes of ``precision``, and its turn.

        A product with a small model takes less time than to enter :meth:`arithmetic`.
        """
        with turn(self.model), contextlib.ExitStack() as stack:
            if self.precision == "tf32" or self.device.type != "cpu" or not is_ieee_on_cpu():
                stack.enter_context(product_mode(self.precision))
            for kind in ("cpu", self.device.type):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    @property
    def cuts(self) -> frozenset[Cut]:
        """Where the latest evaluation took values out of the graph; empty where its micro-batch was known."""
        return self._steady.cuts

    def exact(self) -> Objective:
        """Return the same objective without the rounding of bfloat16 and TF32, in which wrong weights hide."""
        if self.precision in ("fp64", "fp32"):
            return self
        exact = Objective(self.model, self.loss, self.data, "fp32")
        exact.head_room = self.head_room
        return exact

    def forget(self) -> None:
        """Expect other totals from here on: the model changed."""
        self._steady.forget()

    def evaluate(self, batch: Any, key: Key | None = None) -> tuple[Tensor, float]:
        """Compute total and weight of one (micro-)batch; call inside :meth:`arithmetic`.

        Args:
            batch: The batch, or a piece of it, on the model's device.
            key: Which micro-batch of a sweep it is: its total must be the same in every sweep.

        Returns:
            Scalar total, attached to the graph, and its weight: the loss's own, or for a mean loss the leading
            dimension of the batch (1 without data).

        Raises:
            ObjectiveError: The loss fails, or is not a finite scalar attached to the model's parameters.
            NonDeterministicError: It draws random numbers, or has another total than in an earlier sweep.
            ConfigurationError: The forward pass writes to parameters.
        """
        total, weight = self._steady(lambda: self._evaluate(batch), key)
        if key is not None and self._first.key == key and not self._first.meet(float(total.detach())):
            self.check_deterministic(batch)  # the model may have changed since
        return total, weight

    def _evaluate(self, batch: Any) -> tuple[Tensor, float]:
        with forward_mode(self.precision, self.device):
            value = self._call(batch)
        total, weight, declared = as_total(value, batch)
        if self.declares_weight not in (None, declared):
            raise ObjectiveError(
                "The loss returned a scalar for one batch and (total, weight) for another; return (total, weight) for "
                "all of them."
            )
        self.declares_weight = declared
        if not total.requires_grad and torch.is_grad_enabled():
            raise ObjectiveError(
                "The loss does not depend on the model's trainable parameters. The loss must use the model it is given "
                "as its first argument (the engine may pass a converted copy), without no_grad, detach or .item()."
            )
        value_now = float(total.detach())
        if not math.isfinite(value_now) or not math.isfinite(weight):
            raise NotFiniteError(
                f"The loss is not finite (total {value_now}, weight {weight}); check the model's parameters, "
                "the batch, and that no batch has all of its targets ignored under a mean loss."
            )
        return total, weight

    def _call(self, batch: Any) -> Any:
        try:
            return self.loss(self.model) if self.data is None else self.loss(self.model, batches.rebuilt(batch))
        except Exception as error:
            pass_on(error)
            hint = ""
            if isinstance(error, (TypeError, AttributeError)):
                hint = f" It was called as loss(model{'' if self.data is None else ', batch'})."
            if self._cast:
                hint += (
                    f" The loss is called with a {self.dtype} copy of the model for precision={self.precision!r}: it "
                    "must use the model it is given, and tensors that it brings itself must have that dtype."
                )
            raise ObjectiveError(f"The loss raised {raised(error)}.{hint}") from error

    def spot_value(self, batch: Any) -> float:
        """Compute the total of a batch's first samples, or of the whole batch where those define no loss; no graph."""
        with self.arithmetic():
            try:
                return float(self.evaluate(batches.few_samples(batch))[0].detach())
            except NonDeterministicError:
                raise
            except HvpEngineError:
                pass  # a mean whose targets are all ignored, or labels that the loss brings itself, say
            with self.looking(batch):
                return float(self.evaluate(batch)[0].detach())

    def looking(self, batch: Any) -> AbstractContextManager[None]:
        """Hold gradients off while values are looked at, unless the loss needs them; call inside :meth:`arithmetic`.

        Args:
            batch: A batch on which to find that out, the first time.
        """
        if self._needs_gradients is None:
            self._needs_gradients = needs_gradients(self.evaluate, batch)
        return torch.enable_grad() if self._needs_gradients else torch.no_grad()

    @phase("evaluating the loss")
    def first_value(self, batch: Any) -> float:
        """Evaluate a batch's first samples for the first time, and look at what that takes.

        Returns:
            The loss; :meth:`check_deterministic` compares it with a second one.

        Raises:
            NonDeterministicError: The loss draws random numbers.
            ConfigurationError: The forward pass writes to parameters, or a backward hook changes their gradients.
        """
        few = batches.few_samples(batch)
        with self.arithmetic():
            self._steady.refuse_hooks(lambda: self._evaluate(few))
        value, saved = build_and_weigh(lambda: self.spot_value(batch), lambda _: (), list(self.model.parameters()))
        made = self._steady.made
        if saved and made is not None:  # else a transform of the loss forbade to look
            self.seen = Sight(saved + made.bytes, batches.samples(few), made.convolves)
        self._first.begin(value)
        return value

    def repeated(self, value: float, *, served: bool) -> None:
        """Take a second value of the samples whose first one waits for it.

        Args:
            value: The value.
            served: Whether later evaluations compute it as this one did, and not as the first.
        """
        if not self._first.meet(value) and served:
            self._first.begin(value)

    @phase("evaluating the loss a second time")
    def check_deterministic(self, batch: Any, *, may_wait: bool = False) -> None:
        """Evaluate a batch's first samples twice; the same parameters must give the same loss.

        Args:
            batch: A batch of the data.
            may_wait: Whether the evaluation of the first sweep may be the second one, where the data is one batch of so
                few samples.

        Raises:
            NonDeterministicError: They differ, or the loss draws random numbers.
            ConfigurationError: The forward pass writes to parameters, or a backward hook changes their gradients.
        """
        if not may_wait:
            self.first_value(batch)
        if not self._first.waits:
            return
        size = batches.samples(batch)
        if may_wait and len(self._digests) <= 1 and (size is None or size <= batches.FEW):
            self._first.key = (0, 0, batches.leading(batch) or 0)
            return
        self._first.refuse_other(self.spot_value(batch))
