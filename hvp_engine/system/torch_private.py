"""Every private name of PyTorch that the package uses, looked up once, with what serves where a release lacks it.

PyTorch promises nothing about these names. A name that is gone costs speed or a convenience, never a wrong number and
never the import of this package; each is explained where it is looked up.
"""

from __future__ import annotations

import contextlib
import hashlib
import pkgutil
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError

__all__ = [
    "BATCH_NORMS",
    "DROPOUTS",
    "GROUPED_PRODUCTS",
    "SILU_FUNCTIONS",
    "WEIGHT_NORM_FUNCTIONS",
    "DispatchMode",
    "LightDispatchMode",
    "add_batch_dim",
    "around_engine",
    "check_batched_passes",
    "copied_function",
    "default_store",
    "dispatch_modes",
    "enter_vmap",
    "fake_mode",
    "hooks_of_module",
    "hooks_of_tensor",
    "innermost_mode",
    "inside_transform",
    "is_batched",
    "is_flattened",
    "is_operation",
    "is_view",
    "is_zero_tensor",
    "leave_vmap",
    "make_wrapper",
    "nested_forward_mode",
    "remove_batch_dim",
    "resumed_torch_functions",
    "schema_of",
    "storage_key",
    "suspended_torch_functions",
    "transforms_active",
    "uncompiled",
    "unwrap_if_dead",
    "watches_kernels",
    "weak_storage",
    "will_execute",
    "without_mkldnn",
    "without_torch_functions",
    "write_count",
]


def _find(name: str, substitute: Any = None) -> Any:
    """Return what a name "module:attribute" stands for, else the substitute."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return substitute


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


# autograd.Function.apply binds its arguments to the signature of the forward, which takes longer than a small kernel.
# Its base class's apply does not, and is right while no torch.func transform is active and no argument is the wrapper
# of one that has ended. Where one of the three names is missing, a transform always counts as active: then
# Function.apply serves.
transforms_active: Callable[[], bool] = _find("torch:_C._are_functorch_transforms_active")
unwrap_if_dead: Callable[[Tensor], Tensor] = _find("torch:_C._functorch.unwrap_if_dead")
if None in (transforms_active, unwrap_if_dead, _find("torch:_C._FunctionBase")):
    transforms_active, unwrap_if_dead = _always, _unchanged

_levels: Callable[[], list[Any]] | None = _find("torch._functorch.pyfunctorch:retrieve_all_functorch_interpreters")
_FORWARD: Any = _find("torch:_C._functorch.TransformType.Jvp")


def inside_transform() -> bool:
    """Say whether a transform of torch.func (vmap, grad, jvp, ...) is active; true where that cannot be known."""
    return transforms_active() and (_levels is None or bool(_levels()))


def nested_forward_mode() -> bool:
    """Say whether torch.func differentiates in forward mode twice or more at once (jvp of jvp, jacfwd of jacfwd).

    What an autograd.Function saves has lost its tangents by then: PyTorch 2.9 to 2.13 give zeros for the second
    derivative, or crash. Where the levels cannot be asked for, any transform counts.
    """
    if not inside_transform():
        return False
    if _levels is None or _FORWARD is None:
        return True
    return len([level for level in _levels() if level.key() == _FORWARD]) > 1


# Forward mode stands for tangents that are zero by tensors without memory, which must not meet a kernel.
is_zero_tensor: Callable[[Tensor], bool] = _find("torch:Tensor._is_zerotensor", _never)

# `torch.autograd.grad(..., is_grads_batched=True)` runs on the older vmap, which knows no rules for autograd functions:
# BatchedFunction recognises its tensors, takes its dimension off them and puts it back on by these five names. Without
# one of them no tensor is recognised, and `check_batched_passes` keeps the engine from making any.
is_batched: Callable[[Tensor], bool] = _find("torch:_C._functorch.is_legacy_batchedtensor")
enter_vmap: Callable[[], int] = _find("torch:_C._vmapmode_increment_nesting")
leave_vmap: Callable[[], int] = _find("torch:_C._vmapmode_decrement_nesting")
remove_batch_dim: Callable[[Tensor, int, int, int], Tensor] = _find("torch:_remove_batch_dim")
add_batch_dim: Callable[[Tensor, int, int], Tensor] = _find("torch:_add_batch_dim")
_HAS_BATCHED_PASSES = None not in (is_batched, enter_vmap, leave_vmap, remove_batch_dim, add_batch_dim)
if not _HAS_BATCHED_PASSES:
    is_batched = _never


def check_batched_passes() -> None:
    """Refuse to push several vectors through one backward pass where the fused operations could not follow.

    Raises:
        RuntimeError: This PyTorch lacks a name that vmap rules need. The scheduler goes on with single passes, as
            after PyTorch's own errors about vmap.
    """
    if not _HAS_BATCHED_PASSES:
        raise RuntimeError(
            f"The fused operations have no vmap rules under PyTorch {torch.__version__}, which lacks a private "
            "function that they need; use one vector per backward pass."
        )


# Modes below autograd (FLOP counters, fake tensors, make_fx) must see the operations, which fused kernels would hide.
# Where the number of modes cannot be asked for it counts as 0: results stay right, a counter may miss fused work, and
# fake tensors are still recognised by their class.
dispatch_modes: Callable[[], int] = _find("torch:_C._len_torch_dispatch_stack", lambda: 0)

# The innermost dispatch mode, also on a thread on which autograd runs a backward pass. Where it cannot be asked for,
# kernels are not watched, and products are not recorded.
_mode_at: Callable[[int], Any] | None = _find("torch:_C._get_dispatch_stack_at")


def innermost_mode() -> Any:
    """Return the dispatch mode that is in force; None where there is none."""
    count = dispatch_modes()
    return None if _mode_at is None or not count else _mode_at(count - 1)


def watches_kernels() -> bool:
    """Say whether a dispatch mode can be told about calls that no dispatcher sees."""
    return _mode_at is not None


# Whether the running backward pass goes through a node: a gradient that it will not use is not computed. Without the
# name all are taken to be used that the forward pass declared as needed, which computes too much and changes nothing.
will_execute: Callable[[Any], bool] = _find("torch:_C._will_engine_execute_node", _always)


def _make_shell(cls: type, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Any:
    """Make a tensor of a subclass that holds one element, whatever its shape."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape).as_subclass(cls)


# Switches TorchFunctionModes off: each would cost a microsecond per tensor method. Without the name they stay on.
without_torch_functions: Callable[[], AbstractContextManager[Any]] = _find(
    "torch:_C.DisableTorchFunction", contextlib.nullcontext
)

# The same for what the engine does around a backward pass, which itself may recompute a forward pass and must find the
# modes again. Without either name they stay on throughout.
_resume: Any = _find("torch:_C._EnableTorchFunction")
resumed_torch_functions: Callable[[], AbstractContextManager[Any]] = _resume or contextlib.nullcontext
suspended_torch_functions: Callable[[], AbstractContextManager[Any]] = (
    contextlib.nullcontext if _resume is None else without_torch_functions
)

_ENGINE = "_engine_run_backward"  # what PyTorch's functions call to run a backward pass


def around_engine(function: Any, context: AbstractContextManager[Any]) -> FunctionType | None:
    """Copy a function of torch.autograd so that a mode's context holds while the backward pass runs, not before.

    Returns:
        The copy; None where the function does not run the pass by the name known here.
    """
    run = function.__globals__.get(_ENGINE)
    if run is None:
        return None

    def within(*args: Any, **kwargs: Any) -> Any:
        with context:
            return run(*args, **kwargs)

    return copied_function(function, {_ENGINE: within})


def copied_function(function: Any, replaced: dict[str, Any]) -> FunctionType:
    """Copy a function of PyTorch that no mode intercepts, with some of the names that it refers to replaced."""
    passing = {"has_torch_function": lambda _tensors: False, "has_torch_function_unary": lambda _tensor: False}
    copy = FunctionType(
        function.__code__, function.__globals__ | passing | replaced, function.__name__, function.__defaults__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# Uncomputed logits look like a tensor of their shape, dtype and device, but hold no memory.
make_wrapper: Callable[..., Any] = _find("torch:Tensor._make_wrapper_subclass", _make_shell)

# torch.nn.functional.silu ends in this function, and some models call it directly.
SILU_FUNCTIONS: tuple[Callable[..., Any], ...] = tuple(f for f in [_find("torch:_C._nn.silu")] if f is not None)

# Both forms of weight normalization in torch.nn.utils call this function, whose second derivative is wrong. Where it is
# not found it is not replaced, and its node in a graph is refused.
WEIGHT_NORM_FUNCTIONS: tuple[Callable[..., Any], ...] = tuple(f for f in [_find("torch:_weight_norm")] if f is not None)

# Mixtures of experts multiply by all their experts at once; torch.nn.functional.grouped_mm ends in this function.
GROUPED_PRODUCTS: tuple[Callable[..., Any], ...] = tuple(f for f in [_find("torch:_grouped_mm")] if f is not None)

# Dropout and BatchNorm by their base classes, which classes of other packages may share. Without them PyTorch's own
# classes are recognised.
DROPOUTS: Any = _find(
    "torch.nn.modules.dropout:_DropoutNd",
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
BATCH_NORMS: Any = _find(
    "torch.nn.modules.batchnorm:_BatchNorm", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)

# Planning runs a model on tensors that pretend to be on a CPU and counts what is executed below autograd. Nothing
# public does either: without the names there is no planning.
_FakeTensorMode: Any = _find("torch._subclasses.fake_tensor:FakeTensorMode")


class _NoDispatchMode:
    """A stand-in for the class of dispatch modes, which cannot be made."""

    def __init__(self) -> None:
        _refuse_planning("TorchDispatchMode")


DispatchMode: Any = _find("torch.utils._python_dispatch:TorchDispatchMode", _NoDispatchMode)


class LightDispatchMode(DispatchMode):  # type: ignore[misc]
    """A dispatch mode whose first call does not import PyTorch's compiler, which takes a second and 39 MB."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def _refuse_planning(name: str) -> NoReturn:
    raise ConfigurationError(
        f"Planning needs PyTorch's {name}, which PyTorch {torch.__version__} does not have in its place; use a PyTorch "
        "release that hvp_engine names as supported."
    )


def fake_mode() -> AbstractContextManager[Any]:
    """Return a context in which tensors have shapes, dtypes and devices, but no data.

    Raises:
        ConfigurationError: This PyTorch has no such mode.
    """
    if _FakeTensorMode is None:
        _refuse_planning("FakeTensorMode")
    mode: AbstractContextManager[Any] = _FakeTensorMode(allow_non_fake_inputs=True)
    return mode


_mkldnn_enabled: Callable[[], bool] | None = _find("torch:_C._get_mkldnn_enabled")
_enable_mkldnn: Callable[[bool], None] | None = _find("torch:_C._set_mkldnn_enabled")


@contextlib.contextmanager
def without_mkldnn() -> Iterator[None]:
    """Run without oneDNN's own operations, which only CPUs have.

    The public switch sets precisions too, and on the way back may not restore what was set for single operations; it
    serves where the private one is missing.
    """
    if _mkldnn_enabled is None or _enable_mkldnn is None:
        with torch.backends.mkldnn.flags(enabled=False):
            yield
        return
    before = _mkldnn_enabled()
    try:
        _enable_mkldnn(False)
        yield
    finally:
        _enable_mkldnn(before)


def storage_key(storage: torch.UntypedStorage) -> Hashable:
    """Return what tells a storage from others.

    That is its object, not its address: tensors on the meta device have none. Where the object has no number its
    address serves, and on the meta device the storage itself, which then stays alive but holds no memory.
    """
    key: Hashable = getattr(storage, "_cdata", None) or storage.data_ptr() or storage
    return key


def _storage(storage: torch.UntypedStorage) -> object:
    return storage


# While there is a weak reference to a storage its key belongs to no other, although its memory may be gone. Without the
# name the storage itself is kept, which takes memory as long as a pass is recorded.
weak_storage: Callable[[torch.UntypedStorage], object] = _find(
    "torch.multiprocessing.reductions:StorageWeakRef", _storage
)


# The type of operations, as a dispatch mode is given them, has no public name.
_Operation: type = type(torch.ops.aten.add.Tensor)


def is_operation(function: Any) -> bool:
    """Say whether a function is one of PyTorch's operations."""
    return isinstance(function, _Operation)


def schema_of(operation: Any) -> Any:
    """Return what an operation declares of its arguments and results: names, types, aliases; None where it does not."""
    return getattr(operation, "_schema", None)


def is_view(operation: Any) -> bool:
    """Say whether a result of an operation shares an argument's memory and is not written to.

    Where an operation does not tell, it counts as one that makes new tensors: then a plan counts more traffic than
    there is.
    """
    schema = schema_of(operation)
    results = () if schema is None else schema.returns
    return any(result.alias_info is not None and not result.alias_info.is_write for result in results)


def write_count(tensor: Tensor) -> int:
    """Return a number that changes whenever a tensor is written to.

    Where PyTorch does not count that is a digest of the content, which takes as long as to read the tensor.
    """
    counted: int | None = getattr(tensor, "_version", None)
    if counted is not None:
        return counted
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=8).digest(), "big")


# Where hooks are kept has no public name; without it a changed hook shows in the losses and products alone.
_MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def hooks_of_module(module: nn.Module) -> list[Callable[..., Any]]:
    """List the hooks that run with a module's forward and backward pass."""
    return [hook for kept in _MODULE_HOOKS for hook in (getattr(module, kept, None) or {}).values()]


def hooks_of_tensor(tensor: Tensor) -> list[Callable[..., Any]]:
    """List the hooks that run with the gradient of a tensor."""
    return list((getattr(tensor, "_backward_hooks", None) or {}).values())


def is_flattened(parameter: Tensor) -> bool:
    """Say whether FullyShardedDataParallel has a parameter flat, or in a flat one, of which each process has a part."""
    return bool(getattr(parameter, "_is_flat_param", getattr(parameter, "_fsdp_flattened", False)))


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` put a wrapper around, or the module itself where there is none."""
    inner = getattr(module, "_orig_mod", module)  # without it the wrapper is passed, and refused as it was before
    return inner if isinstance(inner, nn.Module) else module


def _no_store() -> None:
    return None


# The store of the default process group, on which processes say why they end; None where a release has no such name:
# they are missed then, and not named.
default_store: Callable[[], Any] = _find("torch.distributed.distributed_c10d:_get_default_store", _no_store)
