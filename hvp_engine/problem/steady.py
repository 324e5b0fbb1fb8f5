"""One evaluation of a loss after another, each the same function and none seen by the caller's model afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError, NonDeterministicError, ObjectiveError
from hvp_engine.problem.checks import active_dropout
from hvp_engine.problem.cuts import Cut
from hvp_engine.problem.forward_guard import ForwardGuard, Made, refuse_write
from hvp_engine.problem.held_generators import held_sources
from hvp_engine.problem.model_state import ModelState
from hvp_engine.problem.precision import Precision
from hvp_engine.problem.randomness import RandomnessWatch
from hvp_engine.system.failures import pass_on
from hvp_engine.system.formatting import first_names, raised
from hvp_engine.system.torch_private import without_torch_functions, write_count

Key = tuple[int, int, int]  # batch, first sample, samples
Evaluation = Callable[[], tuple[Tensor, float]]

_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}  # relative, of a total evaluated again


class SteadyLoss:
    """Evaluates one objective's loss, and refuses a loss that is another one the next time.

    The first evaluation, and the first one of every micro-batch, is watched closely: writes to parameters are refused
    before they happen, and autocast inside the model is noticed and, where the precision is not ``"bf16"``, kept out of
    this and of all later evaluations.

    Attributes:
        cuts: Where the latest evaluation took values out of the graph; empty for one that was not watched.
        made: What the first evaluation made; None before it.
        depth: How often the state is held.
    """

    def __init__(self, source: nn.Module, state: ModelState, loss: object, precision: Precision) -> None:
        """Take the ingredients.

        Args:
            source: The caller's model.
            state: That of what is differentiated: of the caller's model, or of a converted copy.
            loss: The loss.
            precision: Arithmetic of the products.
        """
        model = state.model
        self._source, self._model = source, model
        self._precision = precision
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._state = state
        self._randomness = RandomnessWatch(held_sources(model, loss))
        self._guard: ForwardGuard | None = None
        self._guarded = True
        self.cuts: frozenset[Cut] = frozenset()
        self.made: Made | None = None
        self._attached = source is model
        self._totals: dict[Key, float] = {}
        self.depth = 0
        self._begun = False  # whether the generators' states are known, since the state is held

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model's state apart, and the caller's settings out."""
        with self._state.held(), _without_autocast(self._device):
            if not self.depth:
                self._begun = False
            self.depth += 1
            try:
                yield
            finally:
                self.depth -= 1

    def forget(self) -> None:
        """Expect other totals from here on: the model changed."""
        self._totals.clear()
        self._guard = None
        self._attached = self._source is self._model

    def __call__(self, evaluate: Evaluation, key: Key | None) -> tuple[Tensor, float]:
        """Evaluate; call inside :meth:`held`.

        Args:
            evaluate: Calls the loss and gives total and weight.
            key: Which micro-batch it is; None for a piece that is no part of a sweep.

        Raises:
            NonDeterministicError: The loss draws random numbers, or the micro-batch had another total before.
            ConfigurationError: The forward pass writes to parameters, or uses those of the model that was copied.
            ObjectiveError: The model writes to a buffer too large to be kept apart.
        """
        if not self._begun:
            self._randomness.begin()
            self._begun = True
        try:
            return self._checked(evaluate, key)
        except BaseException:
            self._randomness.put_back()
            raise

    def _checked(self, evaluate: Evaluation, key: Key | None) -> tuple[Tensor, float]:
        versions = self._versions()
        total, weight = self._once(evaluate, watched=key is not None and key not in self._totals)
        value = float(total.detach())
        if self._versions() != versions:
            names = [name for name, _ in self._model.named_parameters()]
            changed = next(n for n, (a, b) in enumerate(zip(self._versions(), versions, strict=True)) if a != b)
            refuse_write(names[changed], norm=False)
        self._refuse_randomness(evaluate, value)
        if key is not None:
            self._compare(key, value)
        if not self._attached and total.requires_grad:
            self._refuse_originals(total)
            self._attached = True
        return total, weight

    def refuse_hooks(self, evaluate: Evaluation) -> None:
        """Refuse backward hooks of modules that change gradients; hooks that watch do not run; call inside `held`.

        Raises:
            ConfigurationError: A hook changes the gradient.
            ObjectiveError: A hook, or a backward of the model's own, raises an exception.
        """
        if not self._state.hooked:
            return
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._randomness.begin()
        try:
            plain = _gradient(lambda: self._once(evaluate)[0], parameters, "of this model")
            self._randomness.put_back()
            with self._state.with_hooks():
                hooked = _gradient(lambda: evaluate()[0], parameters, "with the backward hooks of modules")
        finally:
            self._randomness.put_back()
        for one, other in zip(plain, hooked, strict=True):
            if (one is None) is not (other is None) or (
                one is not None and other is not None and not torch.allclose(one, other, rtol=1e-4, atol=1e-30)
            ):
                raise ConfigurationError(
                    "A backward hook of a module changes the gradient, so that it is no gradient of the loss, and its "
                    "derivative no Hessian. Remove the hook (handle.remove()), and write what it does into the "
                    "forward pass."
                )

    def _versions(self) -> list[int]:
        with without_torch_functions():
            return [write_count(p) for p in self._state.parameters]

    def _once(self, evaluate: Evaluation, *, watched: bool = False) -> tuple[Tensor, float]:
        self.cuts = frozenset()
        with self._state.evaluation():
            if not self._guarded and not watched:
                return evaluate()
            if self._guard is None:
                self._guard = ForwardGuard(self._model, self._device, plain=self._precision != "bf16")
            with self._guard:
                found = evaluate()
            self._guard.refuse_foreign_writes()
            self.made = self.made or self._guard.made
            if torch.is_grad_enabled():  # else nothing is cut
                self._guarded = self._guard.autocast
                self.cuts = frozenset(self._guard.cuts)
            return found

    def _refuse_randomness(self, evaluate: Evaluation, value: float) -> None:
        drawn = self._randomness.changed()
        if not drawn:
            return
        training = any(module.training for module in self._model.modules())
        if not self._randomness.matters(drawn, value, lambda: self._value(evaluate), training=training):
            # A layer of zeros (of LoRA, or a head to be trained) hides from the value what its gradient shows.
            size = self._gradient_size(evaluate)
            if not self._randomness.matters(drawn, size, lambda: self._gradient_size(evaluate), training=False):
                return
        dropping = active_dropout(self._model)
        drawing = dropping or self._drawing_modules(evaluate)
        cause = (
            f"dropout is active in {first_names(dropping)}"
            if dropping
            else "it draws random numbers (functional dropout, layer drop, noise, sampling)"
            + (f" in {first_names(drawing)}" if drawing else "")
        )
        raise NonDeterministicError(
            f"The loss is random: {cause}, so that its Hessian is that of one draw. Call model.eval(), set the "
            "probability to 0, or draw the numbers once and keep them in the data."
        )

    def _value(self, evaluate: Evaluation) -> float:
        with self._state.evaluation():
            return float(evaluate()[0].detach())

    def _gradient_size(self, evaluate: Evaluation) -> float:
        """Add up the gradient's absolute values, every entry with a weight of its own."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        with torch.enable_grad(), self._state.evaluation():
            loss = evaluate()[0]
            if not (parameters and loss.requires_grad):
                return 0.0
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            parts = [g.abs().flatten().double() for g in gradients if g is not None and g.layout == torch.strided]
            return sum(float(g @ torch.linspace(1.0, 2.0, len(g), dtype=g.dtype, device=g.device)) for g in parts)

    def _drawing_modules(self, evaluate: Evaluation) -> list[str]:
        """Name the innermost modules during whose forward pass a generator changes."""
        found: dict[str, None] = {}
        open_modules: list[tuple[str, bool]] = []

        def enter(module: nn.Module, args: object, *, name: str) -> None:
            self._randomness.begin()
            open_modules.append((name, False))

        def leave(module: nn.Module, args: object, output: object) -> None:
            name, inner = open_modules.pop()
            drew = bool(self._randomness.changed())
            if drew and not inner and name:
                found[name] = None
            self._randomness.begin()
            if open_modules and (drew or inner):
                open_modules[-1] = (open_modules[-1][0], True)

        before = self._randomness.snapshot()
        handles = []
        try:
            for name, module in self._model.named_modules():
                handles.append(module.register_forward_pre_hook(_named(enter, name)))
                handles.append(module.register_forward_hook(leave))
            with contextlib.suppress(Exception):
                evaluate()
        finally:
            for handle in handles:
                handle.remove()
            self._randomness.restore(before)
        return list(found)

    def _compare(self, key: Key, value: float) -> None:
        known = self._totals.setdefault(key, value)
        if abs(known - value) > _TOLERANCE[self._precision] * max(abs(known), abs(value)):
            raise NonDeterministicError(
                f"The loss of batch {key[0]} changed between two sweeps, from {known:.9g} to {value:.9g}, at the same "
                "parameters: it depends on something else that changes, such as a schedule, a counter or a cache. Hold "
                "that fixed during the job."
            )

    def _refuse_originals(self, total: Tensor) -> None:
        """Refuse a loss that reaches parameters of the caller's model beside those of the copy."""
        originals = {id(p): name for name, p in self._source.named_parameters()}
        pending, seen = [total.grad_fn], set()
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = originals.get(id(getattr(node, "variable", None)))
            if name is not None:
                raise ConfigurationError(
                    f"The loss is called with a converted copy of the model, yet uses the parameter {name!r} of the "
                    "model itself: through a hook, a replaced forward or the loss's own reference. Use the model that "
                    "the loss and the hook are given, or convert model and data yourself (model.double(), x.double())."
                )
            pending += [parent for parent, _ in node.next_functions]


def _named(hook: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda module, args: hook(module, args, name=name)


@contextlib.contextmanager
def _without_autocast(device: torch.device) -> Iterator[None]:
    """Switch a caller's autocast off: backward passes would run in it, and it would keep casts of the parameters."""
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _gradient(loss: Callable[[], Tensor], parameters: list[nn.Parameter], what: str) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(loss(), parameters, allow_unused=True)
    except Exception as error:
        pass_on(error)
        why = raised(error)
        raise ObjectiveError(f"A backward pass {what} raised {why}. Remove or mend what raises it.") from error
