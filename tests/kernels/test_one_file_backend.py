"""A backend is one file per family that it has and one entry in the table: proven with a backend of one file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import hvp_engine as he
from hvp_engine import kernels
from hvp_engine.errors import BackendError
from hvp_engine.kernels import registry
from hvp_engine.kernels.registry import Backend, families_of, forget_choices, is_fused, optional_implementation
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv("HVP_ENGINE_BACKEND", raising=False)


def operations() -> dict[str, Callable[[], torch.Tensor]]:
    """One call of every operation, by the family that serves it; some families serve two."""
    x, rows, target = torch.randn(1, 2, 3, 4), torch.randn(3, 4), torch.tensor([0, 1, 2])
    return {
        "activations": lambda: he.ops.gelu(x),
        "attention": lambda: he.ops.attention(x, x, x),
        "cross_entropy": lambda: he.ops.cross_entropy(rows, target),
        "embedding": lambda: he.ops.embedding(target, rows),
        "normalize": lambda: he.ops.layer_norm(x, (4,)),
        "softmax": lambda: he.ops.softmax(x),
    }


@pytest.mark.parametrize("wish", ["triton", "nonsense"])
@pytest.mark.parametrize("family", operations())
def test_a_kernel_that_cannot_run_is_refused_when_it_is_called(monkeypatch, wish, family):
    call = operations()[family]
    call()
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    with pytest.raises(BackendError, match=f"{wish} cannot be used on cpu.* Unset HVP_ENGINE_BACKEND"):
        call()


@pytest.fixture
def one_file_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Make a backend "mine" of one file, which has one family, and one entry in the table of backends."""

    def make(family: str) -> None:
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / f"{family}.py").write_text(f"from hvp_engine.kernels.native.{family} import *\n")
        monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(tmp_path)])
        monkeypatch.setattr(registry, "_BACKENDS", (Backend("mine", lambda device: None, "cpu"), *registry._BACKENDS))
        importlib.invalidate_caches()

    yield make
    for name in [name for name in sys.modules if name.startswith("hvp_engine.kernels.mine")]:
        del sys.modules[name]
    if hasattr(kernels, "mine"):
        del kernels.mine


@pytest.mark.parametrize("others", ["native and torch", "torch"])
@pytest.mark.parametrize("wish", ["", "mine"])
@pytest.mark.parametrize("family", operations())
def test_a_backend_of_one_file_leaves_the_other_families_as_they_were(
    monkeypatch, one_file_backend, family, wish, others
):
    calls = operations()
    expected = {name: call() for name, call in calls.items()}
    forget_choices()
    one_file_backend(family)
    if others == "torch":
        without = tuple(backend for backend in registry._BACKENDS if backend.name != "native")
        monkeypatch.setattr(registry, "_BACKENDS", without)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    assert families_of("mine") == {family}
    x = torch.zeros(1, 2, 3, 4)
    for name, call in calls.items():
        kernels_of = optional_implementation(name, CPU)
        folder = "mine" if name == family else None if wish or others == "torch" else "native"
        assert (kernels_of and kernels_of.__name__) == (folder and f"hvp_engine.kernels.{folder}.{name}")
        assert is_fused(name, x) == (folder is not None)
        torch.testing.assert_close(call(), expected[name])


def test_a_backend_that_has_cross_entropy_but_no_softmax_serves_the_linear_head(monkeypatch, one_file_backend):
    one_file_backend("cross_entropy")
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "mine")
    hidden, weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(7, 4, dtype=torch.float64)
    target, products = torch.tensor([0, 1, 2, 6, 3]), []
    for function in (linear_cross_entropy, linear_cross_entropy_ref):
        (gradient,) = torch.autograd.grad(function(hidden, weight, target), hidden, create_graph=True)
        products += torch.autograd.grad(gradient.square().sum(), hidden)
    torch.testing.assert_close(*products)
