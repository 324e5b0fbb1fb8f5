"""Runs the package once per private name of PyTorch, each time without that name; prints what it found as JSON.

Started as a process of its own, since the names are looked up while the package is imported.
"""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_resolve = pkgutil.resolve_name
_KEPT = "hvp_engine._native"  # an extension module cannot be imported a second time
_BLOCKS = ("wte.weight", "layers.0.attn.wq.weight", "ln_f.weight")


@contextmanager
def imported_without(hidden: str | None) -> Iterator[list[str]]:
    """Import the package as if PyTorch lacked a name; yields the names that were looked up."""
    asked: list[str] = []

    def resolve(name: str) -> Any:
        asked.append(name)
        if name == hidden:
            raise AttributeError(name)
        return _resolve(name)

    for module in list(sys.modules):
        if module.partition(".")[0] in ("hvp_engine", "problems") and module != _KEPT:
            del sys.modules[module]
    pkgutil.resolve_name = resolve
    try:
        import hvp_engine  # noqa: F401

        yield asked
    finally:
        pkgutil.resolve_name = _resolve


def counted(case: Any) -> Any:
    """FLOP, bytes and graph size of a micro-batch as the planner counts them, or its refusal."""
    from hvp_engine.blocks import resolve
    from hvp_engine.errors import ConfigurationError
    from hvp_engine.planning.counting import JobCounter, data_shape

    try:
        shape = data_shape(case.data, torch.float32)
        counts = JobCounter(case.model, case.loss, shape, resolve(case.model, list(_BLOCKS))).count(None)
    except ConfigurationError as error:
        return str(error)
    return [counts.gradient.flop, counts.gradient.bytes, counts.graph_bytes]


def found(dense: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Largest relative error of batched products, why one by one, and what else depends on the names."""
    import problems

    import hvp_engine as he
    from hvp_engine.ops.head.lazy_logits import FusedHead
    from hvp_engine.ops.swap import TwiceDifferentiable
    from hvp_engine.problem import checks

    case = problems.gpt()
    if not dense:
        hessian = problems.dense_hessian(case, _BLOCKS)
        sizes = [dict(case.model.named_parameters())[name].numel() for name in _BLOCKS]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        dense.update({n: hessian[a:b, a:b] for n, a, b in zip(_BLOCKS, ends[:-1], ends[1:], strict=True)})
    operator = he.HessianOperator(case.model, case.loss, list(_BLOCKS), data=case.data)
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(3, len(dense[name]), generator=generator) for name in _BLOCKS}
    products = operator.matmat(vectors)
    wanted = {name: vectors[name].double() @ dense[name] for name in _BLOCKS}
    errors = [float((products[n].double() - wanted[n]).norm() / wanted[n].norm()) for n in _BLOCKS]
    layers = nn.Sequential(nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.BatchNorm2d(3), nn.Dropout(0.0))
    with TwiceDifferentiable(FusedHead(case.model.wte.weight)) as mode:
        case.loss(case.model, case.data[0])
        nn.functional.silu(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    (slope,) = torch.autograd.grad(he.ops.gelu(x).sum(), x)
    slopes = torch.func.vmap(torch.func.grad(he.ops.gelu))(torch.ones(3))
    return {
        "error": max(errors),
        "single": operator.scheduler.plan.single_passes,
        "fused": sorted(mode.replaced),
        "transformed": float((slopes - slope).abs().max()),
        "dropout": checks.active_dropout(layers),
        "batchnorm": checks.training_batchnorm(layers),
        "counted": counted(case),
    }


def main() -> None:
    """Print {name: findings}, and under "" those with every name in place."""
    dense: dict[str, torch.Tensor] = {}
    with imported_without(None) as names:
        results = {"": found(dense)}
    for name in dict.fromkeys(n for n in names if n.startswith("torch")):
        with imported_without(name):
            results[name] = found(dense)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
