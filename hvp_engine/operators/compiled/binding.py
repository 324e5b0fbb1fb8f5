"""One call of a tape as a Python callable without arguments, on tensors that stay where they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvp_engine.system.torch_private import is_operation, schema_of

__all__ = ["bound"]

_aten = torch.ops.aten
# Operations whose functions in torch take the same arguments in the same order, and have less to do than a look-up by
# schema: half a microsecond against two.
_PLAIN = """
    mm.default bmm.default addmm.default baddbmm.default add.Tensor sub.Tensor mul.Tensor div.Tensor neg.default
    sum.dim_IntList tanh.default sigmoid.default exp.default sqrt.default rsqrt.default cat.default where.self
    index_select.default addcmul.default pow.Tensor_Scalar mm.out bmm.out addmm.out baddbmm.out
"""
_QUICK = {name: getattr(torch, name.partition(".")[0]) for name in _PLAIN.split()}
_IN_PLACE = frozenset(["add_", "sub_", "mul_", "div_", "neg_", "zero_", "fill_", "copy_", "addmm_", "addcmul_"])
_COPIES = frozenset(("clone.default", "_to_copy.default"))


def bound(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], outs: tuple[Tensor | None, ...]
) -> Callable[[], object]:
    """Bind a function to its arguments.

    Args:
        function: An operation, or a kernel that writes to its arguments.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outs: Where new tensors go that it would return, None for those that it does not; empty where it makes none.
    """
    if not is_operation(function):
        return partial(function, *args, **kwargs)
    name = str(function).partition(".")[2]
    if not outs:
        quick = name.partition(".")[0]
        if quick in _IN_PLACE:
            return partial(getattr(args[0], quick), *args[1:], **kwargs)
        return partial(_QUICK.get(name, function), *args, **kwargs)
    return _bound_to_results(function, name, args, kwargs, outs)


def _bound_to_results(
    function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], outs: tuple[Tensor | None, ...]
) -> Callable[[], object]:
    """Bind an operation that would return new tensors."""
    if name in _COPIES and outs[0] is not None:
        return partial(outs[0].copy_, args[0])
    if name in _QUICK and len(outs) == 1:
        return partial(_QUICK[name], *args, **kwargs, out=outs[0])
    given = writing_to(function)
    if given is None or any(out is None for out in outs):
        return partial(_run_and_copy, partial(function, *args, **kwargs), outs)
    overload, names = given
    return partial(overload, *args, **kwargs, **dict(zip(names, outs, strict=True)))


def _run_and_copy(function: Callable[[], Any], outs: tuple[Tensor | None, ...]) -> None:
    """Run what gives new tensors, and copy them to where they are looked for."""
    found = function()
    results = found if isinstance(found, (tuple, list)) else (found,)
    for out, result in zip(outs, results, strict=True):
        if out is not None:
            out.copy_(result)


@functools.cache
def writing_to(function: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Return the overload of an operation that writes to given tensors, and their names; None where there is none."""
    schema = schema_of(function)
    if schema is None:
        return None
    wanted = [(argument.name, str(argument.type)) for argument in schema.arguments]
    packet = function.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = schema_of(overload).arguments
        outs = [argument for argument in arguments if argument.is_out]
        rest = [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out]
        if outs and rest == wanted and len(outs) == len(schema.returns):
            return overload, tuple(argument.name for argument in outs)
    return None
