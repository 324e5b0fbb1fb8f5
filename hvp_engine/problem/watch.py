"""What changed since the last look: of the caller's model, and of the data that kept graphs hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from hvp_engine.errors import NonDeterministicError
from hvp_engine.kernels.fingerprint import fingerprint
from hvp_engine.problem import batches
from hvp_engine.problem.working_copy import refresh, settings
from hvp_engine.system.formatting import first_names
from hvp_engine.system.torch_private import write_count

_EVERY = 8  # looks: a GPU's content is read once in so many, since the host waits for it


class ModelWatch:
    """Notices what is written to a model, however it is written, and passes it on to a converted copy.

    Attributes:
        stale: Whether the last look found graphs made before it to be of no use: also after a write that changed
            nothing, since autograd counts writes, and after a change of a plain attribute.
    """

    def __init__(self, model: nn.Module, copied: nn.Module) -> None:
        """Watch a model.

        Args:
            model: The caller's model.
            copied: What is differentiated: the model itself, or a copy in another dtype, made just now.
        """
        self._model, self._copied = model, copied
        self.stale = False
        self._looks = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._contents: dict[str, int] = {}
        self._settings: dict[str, Any] = {}
        if copied is not model:
            self.look()

    def touched(self) -> bool:
        """Say whether anything was written to as PyTorch counts it, which takes no reading."""
        return bool(self._looks) and _places(_tensors(self._model)) != self._places

    def look(self) -> list[str]:
        """Return the names of parameters and buffers that changed since the last look, and of modules whose mode did.

        The first look finds nothing. A converted copy has the same content and plain attributes afterwards.

        Raises:
            ConfigurationError: The converted copy cannot follow.
        """
        first, whole = not self._looks, self._looks % _EVERY == 0
        tensors, plain = _tensors(self._model), _settings(self._model)
        places = _places(tensors)
        self._looks += 1
        contents = {
            name: fingerprint(tensor)
            if whole or tensor.device.type == "cpu" or places[name] != self._places.get(name)
            else self._contents[name]
            for name, tensor in tensors.items()
        }
        changed = [name for name in {**self._contents, **contents} if self._contents.get(name) != contents.get(name)]
        attributes = [name for name in plain if name not in self._settings or self._settings[name] != plain[name]]
        self.stale = not first and bool(changed or attributes or places != self._places)
        self._places, self._contents, self._settings = places, contents, plain
        if first:
            return []
        if (changed or attributes) and self._copied is not self._model:
            refresh(self._copied, self._model)
        return changed + [name for name in attributes if name.rpartition(".")[2] == "training"]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in named if not tensor.is_meta}


def _places(tensors: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Say which object a tensor is, and how often it was written to."""
    return {name: (id(tensor), write_count(tensor)) for name, tensor in tensors.items()}


def _settings(model: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of all modules by name."""
    return {f"{name}.{key}": value for name, module in model.named_modules() for key, value in settings(module).items()}


class HeldData:
    """The data that kept graphs refer to; a graph gives wrong products once somebody writes there."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[list[Tensor], list[int]]] = {}

    def hold(self, key: tuple[int, int], batch: Any) -> None:
        """Remember a micro-batch, and what is in it now."""
        tensors = [tensor for tensor in batches.tensors(batch) if not tensor.is_meta]
        self._held[key] = tensors, _contents(tensors)

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
                f"Batch {number} was overwritten while it was in use (from sample {start} on). The Hessian of a "
                "changing loss is not defined: pass a copy of the data, or do not write to it during the job."
            )


def _contents(tensors: Iterable[Tensor]) -> list[int]:
    return [fingerprint(tensor) for tensor in tensors]


def changed_during_job(names: list[str]) -> NonDeterministicError:
    """Make the error about a model that changed during a job."""
    return NonDeterministicError(
        f"The model changed during the job: {first_names(names)}. A spectrum belongs to one set of parameters, buffers "
        "and modes: let nothing write to the model meanwhile, or pass copy.deepcopy(model)."
    )
