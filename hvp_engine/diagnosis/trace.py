"""One forward and first backward pass, recorded: which module and which source line every autograd node comes from.

Anomaly mode makes PyTorch keep, for every node, the stack that created it and, for nodes that a backward pass creates,
the forward node whose derivative they are. Hooks on the modules tell which module a node belongs to. A function mode
sees the calls that draw random numbers or cut the graph.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from hvp_engine.diagnosis.source import users_line_here, users_line_of_text
from hvp_engine.operators.autograd_nodes import metadata_of, root_of
from hvp_engine.problem import batches

_DRAWS = frozenset(
    (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "random_", "multinomial"),
        *("bernoulli", "bernoulli_", "normal", "normal_", "uniform_", "exponential_", "poisson", "gumbel_softmax"),
    )
)
_DROPOUTS = frozenset(
    (
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        *("rrelu", "scaled_dot_product_attention"),
    )
)


class Trace:
    """Record of where the nodes of an autograd graph come from.

    Attributes:
        draws: Lines that drew random numbers, with the name of the call.
        cuts: Lines that took tensors out of the graph, with the name of the call.
        reentrant: (module, line) of every reentrant activation checkpoint.
    """

    def __init__(self) -> None:
        self.draws: dict[str, str] = {}
        self.cuts: dict[str, str] = {}
        self.reentrant: dict[tuple[str, str | None], None] = {}
        self._modules: dict[Node, str] = {}
        self._stack: list[str] = [""]

    @contextlib.contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record what runs inside; the model's modules carry hooks meanwhile, except scripted ones, which take none."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        try:
            with warnings.catch_warnings(), without_reentrancy(self._note_checkpoint), _Calls(self):
                warnings.simplefilter("ignore")  # anomaly mode announces itself
                with torch.autograd.set_detect_anomaly(True, check_nan=False):
                    yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self, total: Tensor) -> None:
        """Give what no module made, the loss, to the model itself."""
        self._claim([total], "")

    def module_of(self, node: Node) -> str | None:
        """Return the path of the module whose forward pass made a node, or the node that it is a derivative of."""
        return self._modules.get(root_of(node))

    def line_of(self, node: Node) -> str | None:
        """Find the user's line that made a node, or the node that it is a derivative of."""
        stack = metadata_of(root_of(node)).get("traceback_")
        return None if stack is None else users_line_of_text("".join(stack))

    @property
    def nodes(self) -> list[Node]:
        """All nodes of the forward pass."""
        return list(self._modules)

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            del module
            self._claim(batches.tensors([list(args), dict(kwargs)]), self._stack[-1])
            self._stack.append(name)

        return hook

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del module, args, kwargs
        self._claim(batches.tensors(output), self._stack[-1])
        self._stack.pop()

    def _claim(self, tensors: Iterable[Tensor], module: str) -> None:
        """Give a module the nodes behind these tensors that no module has yet."""
        pending = [tensor.grad_fn for tensor in tensors]
        while pending:
            node = pending.pop()
            if node is not None and node not in self._modules:
                self._modules[node] = module
                pending += [parent for parent, _ in node.next_functions]

    def _note_checkpoint(self) -> None:
        self.reentrant[self._stack[-1], users_line_here()] = None


@contextlib.contextmanager
def without_reentrancy(note: Callable[[], None] | None = None) -> Iterator[None]:
    """Run reentrant checkpoints as plain calls, so that the rest of a model can be examined; ``note`` hears of each."""

    def plain(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        del preserve
        if note is not None:
            note()
        return function(*args)

    function: Any = checkpoint.CheckpointFunction
    before = vars(function).get("apply")  # None where it is inherited
    function.apply = staticmethod(plain)
    try:
        yield
    finally:
        if before is None:
            del function.apply
        else:
            function.apply = before


class _Calls(TorchFunctionMode):
    """Mode that notes calls that draw random numbers or cut the graph."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DRAWS or (name in _DROPOUTS and _drops(name, args, kwargs)):
            self._note(self._trace.draws, name)
        elif _cuts(func, name, args):
            self._note(self._trace.cuts, "no_grad" if name == "_set_grad_enabled" else name.strip("_") or "data")
        return func(*args, **kwargs)

    def _note(self, found: dict[str, str], name: str) -> None:
        line = users_line_here()
        if line is not None:
            found.setdefault(line, name)


def _drops(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether a call of a dropout function of PyTorch draws random numbers."""
    if name == "scaled_dot_product_attention":
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    if name == "rrelu":
        return bool(kwargs.get("training", args[3] if len(args) > 3 else False))
    probability = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", args[2] if len(args) > 2 else name.startswith("dropout"))
    return bool(training) and bool(probability)


def _cuts(func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> bool:
    if name == "_set_grad_enabled":
        return args == (False,)
    cutting = name in ("detach", "detach_") or (name == "__get__" and getattr(func, "__self__", None) is Tensor.data)
    return cutting and isinstance(args[0], Tensor) and args[0].requires_grad
