"""Finds a loss's rows by running it: calls of PyTorch's losses are followed, which keep one value per row.

A total that adds up such losses with constant weights is the sum over rows of weight times loss. That is all that the
Fisher matrices need, and it is checked: a total that depends on the parameters in any other way is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from hvp_engine.errors import RowError
from hvp_engine.operators.rows.draws import Place, draw_classes, draw_normals
from hvp_engine.ops.class_targets import ClassTargets
from hvp_engine.ops.head.lazy_logits import HeadLogits, computed

_FIX = (
    "Its rows are found where it calls F.cross_entropy, F.nll_loss, F.mse_loss or F.binary_cross_entropy_with_logits "
    "(nn.CrossEntropyLoss and the like do), weighs their results by constants and adds them up, without further terms "
    '(weight decay, an auxiliary loss of the model). operator="empirical_fisher" takes any loss whose samples can be '
    "evaluated one by one."
)


@dataclass(frozen=True)
class Rows:
    """The rows of a micro-batch.

    Attributes:
        losses: Their losses (rows,), attached to the graph; with drawn targets where these were asked for.
        weights: With what each loss enters the total (rows,), constants.
    """

    losses: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Call:
    """One call of a loss: where its result leaves it, one loss per row, and each one's share of the result."""

    edge: GradientEdge
    losses: Tensor
    shares: Tensor


class RowRecorder(TorchFunctionMode):
    """Records the rows of every loss that is called inside; results are what they are without it."""

    def __init__(self, place: Place | None = None) -> None:
        """Begin without calls.

        Args:
            place: Where the micro-batch stands, for targets drawn from the model's predictions; None takes the data's.
        """
        super().__init__()
        self._place = place
        self._calls: list[_Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one intercepted call; PyTorch calls this with the mode switched off."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        rows = _ROWS.get(func)
        if rows is not None and isinstance(result, Tensor) and result.requires_grad:
            given = inspect.signature(func).bind(*args, **kwargs)
            given.apply_defaults()
            options = dict(given.arguments)
            options["reduction"] = _reduction(options)
            losses, factors = rows(func, options, self._uniforms)
            self._calls.append(_Call(get_gradient_edge(result), losses, factors))
        return result

    def _uniforms(self, count: int) -> Tensor | None:
        return None if self._place is None else self._place.uniforms(len(self._calls), count)

    def rows(self, total: Tensor, parameters: Mapping[str, Tensor]) -> Rows:
        """Return the rows of a total that was evaluated inside.

        Args:
            total: Scalar, attached to the graph.
            parameters: What is to vary, by name.

        Raises:
            RowError: The total depends on the parameters in another way than through rows.
        """
        nodes = {call.edge.node for call in self._calls}
        reached = _follow(total, nodes, {id(parameter): name for name, parameter in parameters.items()})
        calls = [call for call in self._calls if call.edge.node in reached]
        edges = [call.edge for call in calls]
        weights = torch.autograd.grad([total], edges, create_graph=True) if edges else ()
        if any(weight.requires_grad for weight in weights):
            raise RowError(
                f"The loss is no sum of its rows' losses with constant weights, so that it has no Fisher matrix. {_FIX}"
            )
        found = [
            (call.losses.reshape(-1), (weight * call.shares).expand(call.losses.shape).reshape(-1))
            for call, weight in zip(calls, weights, strict=True)
        ]
        self._calls.clear()
        if not found:
            none = total.new_zeros(0)
            return Rows(none, none)
        losses, factors = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        return Rows(losses, factors.detach().to(losses.dtype))


def _follow(total: Tensor, losses: set[Node], parameters: Mapping[int, str]) -> set[Node]:
    """Follow a total back to the losses; return those reached.

    Raises:
        RowError: It reaches a parameter past them.
    """
    pending, seen, reached = [total.grad_fn], set[Node](), set[Node]()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in losses:
            reached.add(node)
            continue
        name = parameters.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise RowError(
                f"The loss depends on the parameter {name!r} otherwise than through losses that are known. {_FIX}"
            )
        pending += [parent for parent, _ in node.next_functions]
    return reached


Draw = Callable[[int], "Tensor | None"]
"""Returns a number in (0, 1) for each of some rows; None where the data's own targets are wanted."""


def _reduction(options: dict[str, Any]) -> str:
    """Take the older options out of a call, and return the reduction that they ask for."""
    averaged, reduced = options.pop("size_average", None), options.pop("reduce", None)
    if averaged is None and reduced is None:
        return str(options["reduction"])
    return "none" if reduced is False else "sum" if averaged is False else "mean"


def _unreduced(func: Callable[..., Any], options: dict[str, Any]) -> Tensor:
    """Return one loss per row, for the data's own targets; logits that are not computed yet must come first."""
    rest = {name: value for name, value in options.items() if name not in ("input", "target", "reduction")}
    losses: Tensor = func(options["input"], options["target"], **rest, reduction="none")
    return losses


def _classes(func: Callable[..., Any], options: dict[str, Any], draw: Draw) -> tuple[Tensor, Tensor]:
    """Return the rows of a loss over classes: log-softmax of logits, or negative log-probabilities."""
    logits, target, weight = options["input"], options["target"], options["weight"]
    is_index = not target.is_floating_point()
    dimension = 0 if logits.dim() == 1 else 1
    count = logits.shape[dimension]
    of_classes = torch.ones(count, device=target.device, dtype=torch.float64) if weight is None else weight.double()
    kept = target != options["ignore_index"] if is_index else None
    if kept is not None:
        own = of_classes[target.where(kept, 0)].where(kept, 0)
        mean = own.sum()
    else:
        mean = of_classes.new_tensor(target.numel() // max(count, 1))
    share = torch.ones_like(mean) if options["reduction"] != "mean" else 1.0 / mean
    uniforms = draw(target.numel() if is_index else target.numel() // max(count, 1))
    if uniforms is None:
        return _unreduced(func, options), share
    if kept is not None:
        smoothing = options.get("label_smoothing", 0.0)
        mass = ClassTargets(options["ignore_index"], smoothing).mass(
            target.reshape(-1), None if weight is None else of_classes, count
        )
        mass = mass.reshape(target.shape)
    else:
        smoothing = options["label_smoothing"]
        mass = ((1.0 - smoothing) * target.double() + smoothing / count).movedim(dimension, -1) @ of_classes
    if func is F.nll_loss:
        _check_normalised(logits.detach(), dimension)
    drawn = draw_classes(_rows_of(logits, dimension), count, uniforms).reshape(mass.shape)
    if kept is not None:
        drawn = torch.where(kept, drawn, options["ignore_index"])
    losses = func(logits, drawn, ignore_index=options["ignore_index"] if kept is not None else -100, reduction="none")
    return losses, share * mass


def _rows_of(logits: Tensor, dimension: int) -> Callable[[int, int], Tensor]:
    """Return what gives some rows of logits, classes last, without a graph."""
    if isinstance(logits, HeadLogits) and logits.hidden.dim() == 2:
        hidden, weight = logits.hidden.detach(), logits.weight.detach()
        bias = None if logits.bias is None else logits.bias.detach()

        def rows(first: int, last: int) -> Tensor:
            with logits.arithmetic():
                return F.linear(hidden[first:last], weight, bias)

        return rows
    flat = computed(logits).detach().movedim(dimension, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    return lambda first, last: flat[first:last]


def _check_normalised(log_probabilities: Tensor, dimension: int) -> None:
    sums = log_probabilities.exp().sum(dimension)
    if bool(((sums - 1.0).abs() > 0.01).any()):
        raise RowError(
            "F.nll_loss was given numbers that are no log-probabilities, so that no targets can be drawn from them; "
            "apply log_softmax first, or use F.cross_entropy."
        )


def _squares(func: Callable[..., Any], options: dict[str, Any], draw: Draw) -> tuple[Tensor, Tensor]:
    """Return the elements of a mean squared error, the likelihood of normal numbers of variance 1/2."""
    pair = torch.broadcast_tensors(options["input"], options["target"])  # type: ignore[no-untyped-call]
    output, target = pair
    weight = options.get("weight")
    mean = (
        torch.tensor(output.numel(), device=output.device, dtype=torch.float64)
        if weight is None
        else weight.double().sum()
    )
    share = 1.0 / mean if options["reduction"] == "mean" else torch.ones_like(mean)
    uniforms = draw(output.numel())
    if uniforms is None:
        return _unreduced(func, {**options, "input": output, "target": target}), share
    _refuse_varying(target)
    drawn = output.detach() + draw_normals(uniforms, output) * 0.5**0.5
    return func(output, drawn, reduction="none"), share if weight is None else share * weight


def _truths(func: Callable[..., Any], options: dict[str, Any], draw: Draw) -> tuple[Tensor, Tensor]:
    """Return the elements of a binary cross-entropy of logits."""
    logits, target = options["input"], options["target"]
    share = torch.ones((), device=logits.device, dtype=torch.float64)
    if options["reduction"] == "mean":
        share = share / logits.numel()
    uniforms = draw(logits.numel())
    if uniforms is None:
        return _unreduced(func, options), share
    _refuse_varying(target)
    if options["pos_weight"] is not None:
        share = share * (1.0 + (options["pos_weight"] - 1.0) * target)
    if options["weight"] is not None:
        share = share * options["weight"]
    chance = logits.detach().double().sigmoid()
    drawn = (uniforms.reshape(logits.shape).to(logits.device) < chance).to(logits.dtype)
    return func(logits, drawn, reduction="none"), share


def _refuse_varying(target: Tensor) -> None:
    if target.requires_grad:
        raise RowError(
            "The targets of a loss depend on the model's parameters, so that there is no distribution to draw others "
            "from; give targets that do not, with the data or by detach()."
        )


_ROWS: dict[Any, Callable[[Callable[..., Any], dict[str, Any], Draw], tuple[Tensor, Tensor]]] = {
    F.cross_entropy: _classes,
    F.nll_loss: _classes,
    F.mse_loss: _squares,
    F.binary_cross_entropy_with_logits: _truths,
}
