"""What changed since the last look: of the caller's model, and of the data that kept graphs hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError, NonDeterministicError
from hvp_engine.kernels.fingerprint import fingerprint
from hvp_engine.problem import batches
from hvp_engine.problem.model_state import turn
from hvp_engine.problem.obstacles import obstacles, refuse
from hvp_engine.problem.state_walk import StateWalk
from hvp_engine.problem.tree import leaves
from hvp_engine.problem.working_copy import copy_again, refresh
from hvp_engine.system.formatting import first_names
from hvp_engine.system.torch_private import hooks_of_tensor, write_count


class ModelWatch:
    """Notices what is written to a model, however it is written, and passes it on to a converted copy.

    Attributes:
        stale: Whether the last look found graphs made before it to be of no use: also after a write that changed
            nothing, since autograd counts writes, and after a change of an attribute, a hook or a module.
        walk: The latest walk through the caller's model.
    """

    def __init__(self, model: nn.Module, copied: nn.Module, dtype: torch.dtype) -> None:
        """Watch a model.

        Args:
            model: The caller's model.
            copied: What is differentiated: the model itself, or a copy in another dtype, made just now.
            dtype: What its tensors have.
        """
        self._model, self._copied, self._dtype = model, copied, dtype
        self._turn = turn(model)
        self.stale = False
        self._looks = 0
        self._forms = _forms(model)
        self.walk = StateWalk(model)
        self._names, self._tensors = _watched(model, self.walk)
        self._writes: list[tuple[int, bool, bool]] = []
        self._contents: dict[str, int] = {}
        self._modes: dict[str, bool] = {}
        if copied is not model:
            self.look()

    def touched(self) -> bool:
        """Say whether anything was written to as PyTorch counts it, which takes no reading."""
        return bool(self._looks) and _writes(self._tensors) != self._writes

    def look(self, *, waiting: bool = True) -> list[str]:
        """Return the names of tensors that changed since the last look, and of modules whose mode did.

        Watched are parameters, buffers, and tensors among the attributes. The first look finds nothing. A converted
        copy has the same content and attributes afterwards.

        Args:
            waiting: Read what is on a GPU, for which the host waits; else writes are seen there as PyTorch counts them.

        Raises:
            ConfigurationError: The parameters are of other names, shapes or kinds, have hooks on their gradients, or
                the converted copy cannot follow.
        """
        with self._turn:
            return self._look(waiting=waiting)

    def _look(self, *, waiting: bool) -> list[str]:
        first = not self._looks
        moved = not self.walk.current
        if moved:
            self.walk = StateWalk(self._model)
            self._names, self._tensors = _watched(self._model, self.walk)
        writes = _writes(self._tensors)
        written = moved or writes != self._writes
        contents = {
            name: fingerprint(tensor) if waiting or first or written or tensor.is_cpu else self._contents[name]
            for name, tensor in zip(self._names, self._tensors, strict=True)
        }
        modes = {f"{n}.training": m.training for n, m in self._model.named_modules()} if moved or first else self._modes
        changed = [] if first else _differing(self._contents, contents) + _differing(self._modes, modes)
        if written or changed:
            self._refuse_other_forms()
            refuse(obstacles(self._model))
        self.stale = not first and bool(written or changed)
        if self.stale and self._copied is not self._model:
            known = dict(self._model.named_buffers()) | self._forms
            if moved or any(name not in known for name in changed):
                copy_again(self._copied, self._model, self._dtype)
            else:
                refresh(self._copied, self._model)
        self._looks += 1
        self._writes, self._contents, self._modes = writes, contents, modes
        return changed

    def _refuse_other_forms(self) -> None:
        """Refuse a model that no longer has the parameters for which the blocks were made."""
        forms = _forms(self._model)
        odd = [
            name
            for name, (shape, device, dtype) in self._forms.items()
            if name not in forms
            or forms[name][:2] != (shape, device)
            or (self._copied is self._model and forms[name][2] != dtype)
        ]
        if odd:
            raise ConfigurationError(
                f"The model has other parameters than when the operator was made ({first_names(odd)} differ in name, "
                "shape, dtype or device); make a new operator."
            )


def _watched(model: nn.Module, walk: StateWalk) -> tuple[list[str], list[Tensor]]:
    """Return the tensors that decide a model's function, and their names."""
    attributes = {walk.names[key]: tensor for key, tensor in walk.tensors.items()}
    leaves = {name: tensor for name, tensor in walk.graphed.items() if tensor.is_leaf}
    named = {**dict(model.named_parameters()), **attributes, **leaves}
    kept = {name: tensor for name, tensor in named.items() if not tensor.is_meta}
    return list(kept), list(kept.values())


def _writes(tensors: list[Tensor]) -> list[tuple[int, bool, bool]]:
    """Say how often tensors were written to, whether they are differentiated, and whether hooks change that."""
    return [(write_count(tensor), tensor.requires_grad, bool(hooks_of_tensor(tensor))) for tensor in tensors]


def _forms(model: nn.Module) -> dict[str, tuple[torch.Size, torch.device, torch.dtype]]:
    return {name: (p.shape, p.device, p.dtype) for name, p in model.named_parameters()}


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


class HeldData:
    """The data that kept graphs refer to; a graph gives wrong products once somebody writes there."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[list[Tensor | np.ndarray], list[int]]] = {}

    def hold(self, key: tuple[int, int], batch: Any) -> None:
        """Remember a micro-batch, and what is in it now."""
        held: list[Tensor | np.ndarray] = [tensor for tensor in batches.tensors(batch) if not tensor.is_meta]
        held += [leaf for _, leaf in leaves(batch) if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject]
        self._held[key] = held, _contents(held)

    def hold_source(self, number: int, batch: Any) -> None:
        """Remember a batch of the caller's, of which micro-batches are converted copies."""
        self.hold((number, -1), batch)

    def release(self) -> None:
        """Forget all micro-batches."""
        self._held.clear()

    def check(self) -> None:
        """Compare every held micro-batch with what it was.

        Raises:
            NonDeterministicError: One changed.
        """
        changed = [key for key, (tensors, known) in self._held.items() if _contents(tensors) != known]
        if changed:
            number, start = changed[0]
            raise NonDeterministicError(
                f"Batch {number} was overwritten while it was in use (from sample {max(start, 0)} on). The Hessian "
                "of a changing loss is not defined: pass a copy of the data, or do not write to it during the job."
            )


def _contents(held: Iterable[Tensor | np.ndarray]) -> list[int]:
    """Tell what is in memory now; on a GPU, for whose content the host would wait, how often it was written to."""
    return [
        hash(item.tobytes())
        if not isinstance(item, Tensor)
        else (fingerprint(item) if item.is_cpu else write_count(item))
        for item in held
    ]


def changed_during_job(names: list[str]) -> NonDeterministicError:
    """Make the error about a model that changed during a job."""
    return NonDeterministicError(
        f"The model changed during the job: {first_names(names)}. A spectrum belongs to one set of parameters, buffers "
        "and modes: let nothing write to the model meanwhile, or pass copy.deepcopy(model)."
    )
