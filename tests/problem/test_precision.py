"""The product modes that a precision means, inside the engine and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from problems import Case, mlp
from torch import nn

import hvp_engine as he
from hvp_engine.problem.precision import Precision, product_mode

BACKENDS: Any = torch.backends
PRECISIONS = get_args(Precision)
NEWER = {
    "all": BACKENDS,
    "cudnn": BACKENDS.cudnn,
    "mkldnn": BACKENDS.mkldnn,
    "cuda.matmul": BACKENDS.cuda.matmul,
    "cudnn.conv": BACKENDS.cudnn.conv,
    "cudnn.rnn": BACKENDS.cudnn.rnn,
    "mkldnn.matmul": BACKENDS.mkldnn.matmul,
    "mkldnn.conv": BACKENDS.mkldnn.conv,
    "mkldnn.rnn": BACKENDS.mkldnn.rnn,
}
BF16_SUMS = "allow_bf16_reduced_precision_reduction"
FP16_SUMS = "allow_fp16_reduced_precision_reduction"
SHORT_SUMS = (BF16_SUMS, FP16_SUMS, "allow_fp16_accumulation")
SPLIT_SUMS = (f"{BF16_SUMS}_split_k", f"{FP16_SUMS}_split_k")  # PyTorch 2.9 has none

# PyTorch 2.9 warns of its older switches whoever uses them; here that is the test, in the user's place.
pytestmark = pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32:UserWarning")


def reset() -> None:
    """Set PyTorch's defaults."""
    torch.set_float32_matmul_precision("highest")
    for switch in NEWER.values():
        switch.fp32_precision = "none"
    BACKENDS.mkldnn.set_flags(_fp32_precision="none")
    BACKENDS.cudnn.allow_tf32 = True
    for name, value in zip(SHORT_SUMS, (True, True, False), strict=True):
        setattr(BACKENDS.cuda.matmul, name, value)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    reset()
    yield
    reset()


def read(older: Callable[[], object]) -> object:
    try:
        return older()
    except RuntimeError as error:  # the newer switches contradict it
        return str(error)


def visible_state() -> dict[str, object]:
    """What a program can see of the switches, and which of them follow others when those change, as they do in here."""
    state: dict[str, object] = {
        "matmul": read(lambda: BACKENDS.cuda.matmul.allow_tf32),
        "cudnn, older": read(lambda: BACKENDS.cudnn.allow_tf32),
        "precision": read(torch.get_float32_matmul_precision),
        **{name: switch.fp32_precision for name, switch in NEWER.items()},
        **{name: getattr(BACKENDS.cuda.matmul, name, None) for name in (*SHORT_SUMS, *SPLIT_SUMS)},
    }
    for general in ("all", "cudnn"):
        for value in ("tf32", "ieee"):
            NEWER[general].fp32_precision = value
            state[f"{general} = {value}"] = [switch.fp32_precision for switch in NEWER.values()]
    return state


def chosen(*settings: tuple[Any, str, object]) -> Callable[[], None]:
    def choose() -> None:
        for owner, name, value in settings:
            setattr(owner, name, value)

    return choose


CALLERS = {
    "PyTorch's defaults": lambda: None,
    "older: TF32 in cuBLAS": chosen((BACKENDS.cuda.matmul, "allow_tf32", True)),
    "older: no TF32": chosen((BACKENDS.cuda.matmul, "allow_tf32", False), (BACKENDS.cudnn, "allow_tf32", False)),
    "older: high": lambda: torch.set_float32_matmul_precision("high"),
    "older: medium": lambda: torch.set_float32_matmul_precision("medium"),
    "newer: everything TF32": chosen((BACKENDS, "fp32_precision", "tf32")),
    "newer: everything IEEE": chosen((BACKENDS, "fp32_precision", "ieee")),
    "newer: CUDA TF32": chosen((BACKENDS.cudnn, "fp32_precision", "tf32")),
    "newer: cuBLAS TF32": chosen((BACKENDS.cuda.matmul, "fp32_precision", "tf32")),
    "newer: convolutions IEEE": chosen((BACKENDS.cudnn.conv, "fp32_precision", "ieee")),
    "newer: CPU bf16": lambda: BACKENDS.mkldnn.set_flags(_fp32_precision="bf16"),
    "newer: CPU matmul bf16": chosen((BACKENDS.mkldnn.matmul, "fp32_precision", "bf16")),
    "both": chosen(
        (BACKENDS, "fp32_precision", "tf32"),
        (BACKENDS.cudnn, "allow_tf32", False),
        (BACKENDS.cuda.matmul, "allow_tf32", True),
        (BACKENDS.cudnn.rnn, "fp32_precision", "ieee"),
    ),
    "sums in float32": chosen((BACKENDS.cuda.matmul, BF16_SUMS, False), (BACKENDS.cuda.matmul, FP16_SUMS, False)),
    "sums in float16": chosen((BACKENDS.cuda.matmul, "allow_fp16_accumulation", True)),
}
if hasattr(BACKENDS.cuda.matmul, SPLIT_SUMS[0]):
    CALLERS["sums in float32, not split"] = chosen(
        (BACKENDS.cuda.matmul, BF16_SUMS, (False, False)), (BACKENDS.cuda.matmul, FP16_SUMS, (False, False))
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("caller", CALLERS)
def test_the_modes_are_the_precisions_inside_and_the_callers_again_afterwards(caller: str, precision: Any) -> None:
    CALLERS[caller]()
    before = visible_state()
    reset()
    CALLERS[caller]()
    with pytest.raises(KeyError, match="out of it"), product_mode(precision):
        tf32 = precision == "tf32"
        assert BACKENDS.cuda.matmul.allow_tf32 is BACKENDS.cudnn.allow_tf32 is tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert {NEWER[name].fp32_precision for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn")} == {
            "tf32" if tf32 else "ieee"
        }
        assert {NEWER[name].fp32_precision for name in NEWER if name.startswith("mkldnn.")} == {"ieee"}
        assert not any(getattr(BACKENDS.cuda.matmul, name) for name in SHORT_SUMS)
        assert all(getattr(BACKENDS.cuda.matmul, name, None) is before[name] for name in SPLIT_SUMS)
        raise KeyError("out of it")
    assert visible_state() == before


def test_a_switch_that_cudnn_flags_restores_is_still_the_precisions() -> None:
    BACKENDS.fp32_precision = "tf32"
    with product_mode("fp32"):
        with torch.backends.cudnn.flags(enabled=False):
            pass
        assert BACKENDS.cudnn.allow_tf32 is False
        assert BACKENDS.cudnn.conv.fp32_precision == BACKENDS.cudnn.rnn.fp32_precision == "ieee"


def lstm() -> Case:
    torch.manual_seed(4)
    model = nn.LSTM(3, 4, batch_first=True)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return model(batch)[0].square().mean()  # type: ignore[no-any-return]

    return Case(model, loss, [torch.randn(2, 5, 3)])


def product(case: Case, precision: Any) -> torch.Tensor:
    size = sum(p.numel() for p in case.model.parameters())
    vector = torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    return he.hvp(case.model, case.loss, {"full": vector}, data=case.data, precision=precision)["full"].double()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_recurrent_layer_without_cudnn(precision: Any) -> None:
    expected, got = product(lstm(), "fp64"), product(lstm(), precision)
    assert (got - expected).norm() <= (0.02 if precision == "bf16" else 1e-5) * expected.norm()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_that_reads_the_older_switches(precision: Any) -> None:
    case, seen = mlp(), []

    def reading(model: nn.Module, batch: Any) -> Any:
        seen.append((BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return case.loss(model, batch)

    product(Case(case.model, reading, case.data), precision)
    tf32 = precision == "tf32"
    assert seen[-1] == (tf32, tf32, "high" if tf32 else "highest")
    assert set(seen) <= {seen[-1], (False, False, "highest")}  # whether weights add up is looked at in float32
