"""The objective L(theta) = (sum of batch totals) / (sum of batch weights), evaluated deterministically."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from hvp_engine.errors import (
    ConfigurationError,
    HvpEngineError,
    NonDeterministicError,
    NotFiniteError,
    ObjectiveError,
)
from hvp_engine.ops.swap import twice_differentiable
from hvp_engine.problem import batches
from hvp_engine.problem.precision import Precision, check_precision, forward_mode, product_mode, working_dtype
from hvp_engine.system.torch_private import BATCH_NORMS, DROPOUTS

Loss = Callable[..., Any]


@dataclass(frozen=True)
class MicroBatch:
    """A piece of the data small enough to be differentiated in one go.

    Attributes:
        key: Position as (batch number, first sample), the same in every sweep.
        batch: The batch on the model's device, or ``None`` where the loss takes no data.
    """

    key: tuple[int, int]
    batch: Any


class Objective:
    """A loss, a model and data, made weighted and deterministic.

    The user's model is never changed: when its dtype differs from the working dtype of ``precision`` a converted
    copy is used, and the loss is called with that copy.
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
        _refuse_unusable(model)
        self.precision = precision
        self.loss = loss
        self.dtype = working_dtype(precision)
        self.model = _working_copy(model, self.dtype)
        self._cast = self.model is not model
        first = next(iter(model.parameters()), None)
        self.device = first.device if first is not None else torch.device("cpu")
        self.data = data
        self.fused = twice_differentiable()
        self._digests: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self._complete = False

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The working copy's parameters by canonical name."""
        return dict(self.model.named_parameters())

    @property
    def data_digest(self) -> str:
        """Digest of all batches; available after the first complete pass."""
        return batches.combined([digest for digest, _ in self._digests])

    def batches(self) -> Iterator[tuple[int, Any]]:
        """Number and content of every batch, on the model's device, checked against the first pass.

        Raises:
            ObjectiveError: There is no batch.
            NonDeterministicError: The data differs from the first pass.
        """
        if self.data is None:
            yield 0, None
            return
        count = 0
        for number, batch in enumerate(self.data):
            self._verify(number, batch)
            count += 1
            yield number, batches.map_tensors(self._place, batch)
        if count == 0:
            raise ObjectiveError("data is empty: it yields no batch.")
        if self._complete and count != len(self._digests):
            raise NonDeterministicError(
                f"data had {len(self._digests)} batches in the first sweep and {count} in this one; "
                "it must yield the same batches every time: pass a list, or a DataLoader with shuffle=False."
            )
        self._complete = True

    def largest_batch(self) -> Any:
        """Return the batch with the most numbers in it; None where the loss takes no data."""
        return batches.largest(batch for _, batch in self.batches())

    def _place(self, tensor: Tensor) -> Tensor:
        if self._cast and tensor.is_floating_point():
            return tensor.to(self.device, self.dtype)
        return tensor.to(self.device)

    def _verify(self, number: int, batch: Any) -> None:
        batches.check_tensors(number, batch)
        print_, shape = batches.fingerprint(batch), batches.layout(batch)
        if number >= len(self._digests):
            if self._complete:
                raise NonDeterministicError(
                    f"data yields more batches than in the first sweep ({len(self._digests)}); "
                    "it must yield the same batches every time: pass a list."
                )
            self._digests.append((print_, shape))
            return
        known, known_shape = self._digests[number]
        if print_ == known:
            return
        what = f"shapes {shape} instead of {known_shape}" if shape != known_shape else "the same shapes, other values"
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
            sdpa_kernel(SDPBackend.MATH),
            self.fused,
        ):
            yield

    def evaluate(self, batch: Any) -> tuple[Tensor, float]:
        """Total and weight of one (micro-)batch; call inside :meth:`arithmetic`.

        Returns:
            Scalar total, attached to the graph, and its weight: the loss's own, or for a mean loss the leading
            dimension of the batch (1 without data).

        Raises:
            ObjectiveError: The loss fails, or is not a finite scalar attached to the model's parameters.
        """
        with forward_mode(self.precision, self.device):
            value = self._call(batch)
        total, weight = _as_total(value, batch)
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
            return self.loss(self.model) if self.data is None else self.loss(self.model, batch)
        except Exception as error:
            if isinstance(error, HvpEngineError) or is_out_of_memory(error):
                raise
            hint = ""
            if self._cast:
                hint = (
                    f" The loss is called with a {self.dtype} copy of the model for precision={self.precision!r}: it "
                    "must use the model it is given, and tensors that it brings itself must have that dtype."
                )
            raise ObjectiveError(f"The loss raised {type(error).__name__}: {str(error).rstrip('.')}.{hint}") from error

    def spot_value(self, batch: Any) -> float:
        """Total of a batch's first samples, without a graph; of the whole batch where those define no loss."""
        with self.arithmetic(), torch.no_grad():
            try:
                return float(self.evaluate(batches.few_samples(batch))[0])
            except ObjectiveError:  # a mean whose targets are all ignored, say
                return float(self.evaluate(batch)[0])

    def check_deterministic(self, batch: Any) -> None:
        """Evaluate a batch's first samples twice; the same parameters must give the same loss.

        Raises:
            NonDeterministicError: They differ; the message names layers that draw random numbers.
        """
        values = self.differing_values(batch)
        if values is None:
            return
        drawing = active_dropout(self.model)
        cause = (
            f"dropout is active in {_first(drawing)}"
            if drawing
            else "the loss draws random numbers (functional dropout, noise, sampling), or it changes a buffer or the "
            "batch that it depends on"
        )
        raise NonDeterministicError(
            f"Two evaluations of the same batch gave {values[0]:.9g} and {values[1]:.9g}: {cause}. "
            "Call model.eval(), set the dropout probability to 0, or mend the loss."
        )

    def differing_values(self, batch: Any) -> tuple[float, float] | None:
        """Two values of a batch's first samples at the same parameters where they differ, else None."""
        first, second = self.spot_value(batch), self.spot_value(batch)
        # Atomics on a GPU may reorder sums: allow rounding, no more.
        return None if abs(first - second) <= 1e-6 * max(abs(first), abs(second)) else (first, second)


def check_ingredients(model: object, loss: object, data: object) -> None:
    """Refuse what cannot be a job, whatever it computes.

    Raises:
        ConfigurationError: The model is no module or has parameters without a shape, or the loss cannot be called.
        ObjectiveError: The data is no collection of batches, or can be read only once.
        NonDeterministicError: A BatchNorm layer is in train mode.
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    if not callable(loss):
        raise ConfigurationError(
            f"loss must be a function, loss(model, batch), not {type(loss).__name__}; hvp_engine.losses has some."
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ConfigurationError(
            f"The model has parameters that have no shape yet ({_first(lazy)}): run it on one batch first, which "
            "initialises lazy modules."
        )
    _refuse_batchnorm(model)
    if isinstance(data, (Tensor, Mapping)):
        raise ObjectiveError("data is a single batch; pass a list of batches: data=[batch].")
    if isinstance(data, Iterator):
        raise ObjectiveError(
            "data is an iterator, which can be read only once; a sweep needs it every step: pass list(data)."
        )
    if data is not None and not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise ObjectiveError(
            f"data must be a list of batches or another re-iterable, not {type(data).__name__}; pass data=None for a "
            "loss without data."
        )


def active_dropout(model: nn.Module) -> list[str]:
    """Names of the dropout layers that draw random numbers: in train mode, with a probability above 0."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, DROPOUTS) and module.training and module.p > 0
    ]


def training_batchnorm(model: nn.Module) -> list[str]:
    """Names of the BatchNorm layers in train mode: their loss depends on how the data is split."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.training
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed, on any device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _as_total(value: Any, batch: Any) -> tuple[Tensor, float]:
    """Normalise what a loss returned to (total, weight)."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ObjectiveError(f"The loss returned {len(value)} values; return a scalar mean or (total, weight).")
        total, weight = value
        weight = _as_weight(weight)
        if weight < 0:
            raise ObjectiveError(f"The loss returned the negative weight {weight}.")
    else:
        total, weight = value, None
    if not isinstance(total, Tensor) or total.numel() != 1:
        shape = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
        raise ObjectiveError(f"The loss must be a scalar tensor, got {shape}; reduce it, for instance with .mean().")
    if not total.is_floating_point():
        raise ObjectiveError(f"The loss must be a real floating-point tensor, got {total.dtype}.")
    total = total.reshape(())
    if weight is None:
        weight = float(batches.leading(batch) or 1)
        total = total * weight
    return total, weight


def _as_weight(weight: Any) -> float:
    """The second value that a loss returned, as a number that does not depend on the parameters."""
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ObjectiveError(
            "The loss returned (total, weight) with a weight that depends on the model's parameters; the weight is a "
            "plain count, for instance of tokens. Fold anything else into the total."
        )
    try:
        return float(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ObjectiveError(
            f"The loss returned two values, which are read as (total, weight), but the second one is no number "
            f"({shape}); return the scalar mean alone, or (total, weight)."
        ) from error


def _refuse_unusable(model: nn.Module) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ConfigurationError(
            'The model is on the "meta" device, so it has shapes and no numbers; load its weights, or use '
            "hvp_engine.plan, which needs none."
        )
    if any(tensor.is_inference() for tensor in tensors):
        raise ConfigurationError(
            "The model was made under torch.inference_mode(), so it cannot be differentiated; make or load it outside."
        )


def _refuse_batchnorm(model: nn.Module) -> None:
    training = training_batchnorm(model)
    if training:
        raise NonDeterministicError(
            f"BatchNorm is in train mode in {_first(training)}: its loss "
            "depends on how the data is split and every evaluation changes its statistics. Call model.eval()."
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _working_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself if its floating-point tensors have the dtype, else a converted deep copy."""
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if all(tensor.dtype == dtype for tensor in floating):
        return model
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise ConfigurationError(
            f"The model has {floating[0].dtype} tensors, the precision asks for {dtype}, and the model cannot be "
            f"copied ({error}); convert it yourself with model.to({dtype})."
        ) from error
    # Not Module.to, which drops the imaginary part of complex buffers (rotary embeddings, say).
    return copied.double() if dtype == torch.float64 else copied.float()
