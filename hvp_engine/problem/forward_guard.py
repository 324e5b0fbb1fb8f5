"""What a forward pass must not do: write to parameters, compute in other arithmetic than asked for, cut its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hvp_engine.errors import ConfigurationError
from hvp_engine.problem.cuts import Cut, cut_by
from hvp_engine.system.layouts import kind_of
from hvp_engine.system.torch_private import storage_key, without_torch_functions

_HARMLESS = ("requires_grad_", "retain_grad_", "detach_", "share_memory_")
_GIVING = frozenset((Tensor.numpy, Tensor.__array__, Tensor.__dlpack__))
_EMBEDDINGS = {F.embedding: 3, F.embedding_bag: 4}  # at which place max_norm may be given


class Made(NamedTuple):
    """What a forward pass made.

    Attributes:
        bytes: Results of its operations, whether or not they are kept.
        convolves: Whether there are convolutions.
    """

    bytes: int
    convolves: bool


class ForwardGuard(TorchFunctionMode):
    """Sees the calls of a forward pass; refuses writes to parameters before they happen, and keeps autocast out.

    Attributes:
        autocast: Whether the forward pass switched autocast on.
        cuts: Where the latest forward pass took values out of the graph.
        made: What the latest forward pass made.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, plain: bool) -> None:
        """Take the model.

        Args:
            model: The caller's model, or what is differentiated in its place.
            device: Where it is.
            plain: Whether its calls run without autocast.
        """
        super().__init__()
        self.autocast = False
        self.cuts: set[Cut] = set()
        self.made = Made(0, convolves=False)
        self._grad = True
        self._plain, self._device = plain, device.type
        self._parameters = dict(model.named_parameters())
        self._names = {key: name for name, p in self._parameters.items() if (key := _key(p)) is not None}
        self._shared: dict[str, Tensor] = {}  # content of parameters whose memory was given away
        self._writers: dict[Any, bool] = {}

    def __enter__(self) -> ForwardGuard:
        """Begin to look, at a new forward pass."""
        self._grad = torch.is_grad_enabled()
        self.cuts.clear()
        self.made = Made(0, convolves=False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at one call, and make it."""
        kwargs = kwargs or {}
        writes = self._writers.get(func)
        if writes is None:
            writes = self._writers[func] = _writes(func)
        if writes:
            self._refuse_write(args[:1])
        elif func in _EMBEDDINGS:
            position = _EMBEDDINGS[func]
            if kwargs.get("max_norm", args[position] if len(args) > position else None) is not None:
                self._refuse_write((kwargs.get("weight", args[1] if len(args) > 1 else None),), norm=True)
        elif func in _GIVING:
            name = self._names.get(_key(args[0]))
            if name is not None and name not in self._shared:
                self._shared[name] = self._parameters[name].detach().clone()
        if "out" in kwargs:
            self._refuse_write((kwargs["out"],))
        if self._plain and torch.is_autocast_enabled(self._device):
            self.autocast = True
            with torch.autocast(self._device, enabled=False):
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        self._count(func, result)
        cut = cut_by(func, (*args, *kwargs.values()), result, within_no_grad=self._grad and not torch.is_grad_enabled())
        if cut is not None:
            self.cuts.add(cut)
        return result

    def _count(self, func: Callable[..., Any], result: Any) -> None:
        size = sum(_bytes(item) for item in result) if isinstance(result, (tuple, list)) else _bytes(result)
        self.made = Made(self.made.bytes + size, self.made.convolves or "conv" in getattr(func, "__name__", ""))

    def refuse_foreign_writes(self) -> None:
        """Undo what was written to parameters through the memory that they shared, with NumPy say, and refuse it.

        Raises:
            ConfigurationError: Something was.
        """
        for name, content in self._shared.items():
            if not torch.equal(self._parameters[name], content):
                self._parameters[name].data.copy_(content)
                refuse_write(name, norm=False)

    def _refuse_write(self, targets: Iterable[Any], *, norm: bool = False) -> None:
        for target in targets:
            if isinstance(target, (tuple, list)):
                self._refuse_write(target, norm=norm)
            elif isinstance(target, Tensor) and (name := self._names.get(_key(target))) is not None:
                refuse_write(name, norm=norm)


def refuse_write(name: str, *, norm: bool) -> NoReturn:
    """Refuse a model whose forward pass writes to one of its parameters."""
    if norm:
        raise ConfigurationError(
            f"The embedding {name!r} has max_norm: its forward pass shortens the rows that it reads, so that the loss "
            "changes the parameters it is evaluated at. Shorten the rows once (torch.renorm(weight, 2, 0, max_norm)) "
            "and set max_norm=None."
        )
    raise ConfigurationError(
        f"The forward pass writes to the parameter {name!r}, so that the loss changes the parameters it is evaluated "
        "at. Write to a parameter after an optimiser's step, or compute with a changed copy (weight.clamp(-1, 1))."
    )


def _bytes(result: Any) -> int:
    """Return the bytes of a result's numbers; of none but tensors, and of a view as if it were not one."""
    if not isinstance(result, Tensor):
        return 0
    with without_torch_functions():
        return 0 if kind_of(result) is not None else result.numel() * result.element_size()


def _key(tensor: Tensor) -> Any:
    try:
        return storage_key(tensor.untyped_storage())
    except (RuntimeError, NotImplementedError):  # sparse, or of a subclass without memory of its own
        return None


def _writes(func: Any) -> bool:
    """Say whether a function writes to its first argument; a setter of ``.data`` does, too."""
    name = getattr(func, "__name__", "")
    if name in ("__set__", "__setitem__"):
        return name == "__setitem__" or getattr(func, "__self__", None) is Tensor.data
    if name.startswith("__i") and name.endswith("__"):
        return name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__ipow__", "__imod__")
    return name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
