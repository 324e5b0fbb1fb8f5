"""Operations without second derivative in the graph of the gradient, and suspects of a wrong one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from hvp_engine.blocks import BlockPart, ResolvedBlock
from hvp_engine.diagnosis.report import Finding
from hvp_engine.diagnosis.source import users_line_of_text
from hvp_engine.diagnosis.trace import Trace
from hvp_engine.errors import BackwardError, SecondDerivativeError
from hvp_engine.operators.autograd_nodes import function_of, name_of, nodes_behind, operation_of, parent_of, root_of
from hvp_engine.operators.backward import fix_for
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.inspection import custom_function
from hvp_engine.operators.known_wrong import known_wrong
from hvp_engine.system.failures import is_device_failure, is_out_of_memory
from hvp_engine.system.formatting import first_line
from hvp_engine.system.torch_nodes import ends_of_node

_ERROR_NODES = ("Error", "NotImplemented", "DelayedError")
_PYTORCH_FIX = "use plain PyTorch operations there, or a backward pass that is itself differentiable"


def examine_graph(graph: GradientGraph, trace: Trace) -> list[Finding]:
    """Find every operation without second derivative in the graph of a gradient; call inside ``trace.recording``.

    Args:
        graph: The gradient's graph.
        trace: The record of the passes that made the graph.

    Returns:
        One error per operation, module and line.
    """
    nodes = nodes_behind(graph.gradients.values())
    found: dict[Finding, None] = {}
    for node in nodes:
        if name_of(node) in _ERROR_NODES:
            found[_missing(root_of(node), trace)] = None
    for node in trace.nodes:
        if name_of(node) == "CompiledFunctionBackward":
            found[compiled("A function compiled by torch.compile", trace.module_of(node), trace.line_of(node))] = None
        wrong = known_wrong(node)
        if wrong is not None:
            message = f"{wrong.operation} {wrong.fault}."
            place = trace.module_of(node), trace.line_of(node)
            found[Finding("error", "known-wrong-derivative", message, *place, wrong.fix)] = None
    error = _second_backward(graph)
    if error is not None:
        # PyTorch stops at the first operation; asking every node by itself finds all of them.
        for node in nodes:
            if parent_of(node) is not None and _refuses(node):
                found[_missing(root_of(node), trace)] = None
        if not found:
            found[error] = None
    return list(found)


def compiled(what: str, module: str | None, line: str | None = None) -> Finding:
    """Make the finding about a compiled part of the model, which has no second derivative."""
    return Finding(
        "error",
        "compiled-module",
        f"{what} cannot be differentiated twice: torch.compile makes the backward pass a black box.",
        module,
        line,
        "pass the uncompiled model (model._orig_mod), or leave torch.compile out",
    )


def suspects(trace: Trace, gradients: list[Tensor | None]) -> list[str]:
    """List what may have made a second derivative wrong, in words with module and line, the likeliest first."""
    from_inputs = _differentiated_functions(gradients)
    ranked: list[tuple[int, str]] = []
    for node in trace.nodes:
        if custom_function(node) is None:
            continue
        rank, why = 2, "a custom autograd.Function"
        if _once_differentiable(node):
            rank, why = 0, "its backward is marked once_differentiable"
        elif node not in from_inputs:
            rank, why = 1, "its backward does not depend on its inputs, which is right for a linear function only"
        place = ", ".join(part for part in (_module(trace, node), trace.line_of(node)) if part)
        ranked.append((rank, f"{operation_of(node)} ({place}): {why}"))
    cuts = [f"{name} at {line}: it takes tensors out of the graph" for line, name in trace.cuts.items()]
    ordered = [text for _, text in sorted(ranked, key=lambda item: item[0])]
    return list(dict.fromkeys([*ordered, *cuts]))


def failed_backward(error: Exception, stacks: str) -> Finding:
    """Make the finding about a backward pass that raised, located by what anomaly mode printed."""
    raised = error.__cause__ if isinstance(error, SecondDerivativeError) and error.__cause__ is not None else error
    return Finding(
        "error",
        "backward-fails",
        f"The backward pass raised {type(raised).__name__}: {first_line(raised)}.",
        None,
        users_line_of_text(_innermost_stack(stacks)),
        _PYTORCH_FIX,
    )


def _second_backward(graph: GradientGraph) -> Finding | None:
    """Multiply the Hessian of all parameters of the blocks by a vector of ones; what stopped it, if anything."""
    parts = tuple(BlockPart(n, None, p.shape, p.numel()) for n, p in graph.parameters.items())
    union = ResolvedBlock("union", parts, sum(part.numel for part in parts))
    first = next(iter(graph.parameters.values()))
    vector = torch.ones(1, union.numel, dtype=first.dtype, device=first.device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            graph.product(union, vector, torch.zeros_like(vector), batched=False)
        except Exception as error:
            if is_out_of_memory(error) or is_device_failure(error):
                raise
            stacks = "".join(str(warning.message) for warning in caught)
            located = failed_backward(error, stacks)
            if isinstance(error, SecondDerivativeError) and not isinstance(error, BackwardError):
                message, _, fix = str(error).rstrip(".").partition("; ")
                return Finding("error", "no-second-derivative", f"{message}.", None, located.line, fix)
            return located
    return None


def _missing(node: Node, trace: Trace) -> Finding:
    operation = operation_of(node)
    if _once_differentiable(node):
        message = f"{operation} has no second derivative: its backward is marked once_differentiable."
        fix = "remove the mark and write its backward with differentiable operations, or " + fix_for("custom")
    else:
        message = f"{operation} has no second derivative in PyTorch."
        fix = fix_for(re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", operation).lower())
    return Finding("error", "no-second-derivative", message, trace.module_of(node), trace.line_of(node), fix)


def _refuses(node: Node) -> bool:
    """Say whether a node that a backward pass created has no derivative of its own."""
    described = ends_of_node(node)
    if described is None or isinstance(node, BackwardCFunction):
        return False
    try:
        with torch.no_grad():
            cast(Callable[..., Any], node)(*[torch.zeros(m.shape, dtype=m.dtype, device=m.device) for m in described])
    except NotImplementedError:
        return True
    except Exception:  # zeros that it cannot take say nothing about its derivative
        return False
    return False


def _once_differentiable(node: Node) -> bool:
    backward = getattr(function_of(node), "backward", None)
    code = getattr(backward, "__code__", None)
    once = torch.autograd.function.once_differentiable
    return code is not None and code.co_filename == once.__code__.co_filename and hasattr(backward, "__wrapped__")


def _differentiated_functions(gradients: list[Tensor | None]) -> set[Node]:
    """Find the forward nodes whose backward pass used what the forward pass made, as far as the graph shows."""
    used = set()
    for node in nodes_behind(gradients):
        parent = parent_of(node)
        if parent is not None and any(_is_forward(before) for before, _ in node.next_functions):
            used.add(parent)
    return used


def _is_forward(node: Node | None) -> bool:
    return node is not None and parent_of(node) is None


def _module(trace: Trace, node: Node) -> str:
    module = trace.module_of(node)
    return f"module {module!r}" if module else ""


def _innermost_stack(text: str) -> str:
    """Cut the stack of the forward pass, which comes last, out of those that anomaly mode printed."""
    return text.rpartition("Traceback of forward call")[2]
