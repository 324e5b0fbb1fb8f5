"""Who changes PyTorch's switches of products when: nested, in several threads, interrupted, in releases that lack some.

The switches are stand-ins here, so that every single access to one can fail or be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.problem import product_switches
from hvp_engine.problem.precision import product_mode

NEWER = {
    "backends": "none",
    "backends.cudnn": "tf32",
    "backends.cuda.matmul": "ieee",
    "backends.cudnn.conv": "tf32",
    "backends.cudnn.rnn": "none",
    "backends.mkldnn.matmul": "bf16",
    "backends.mkldnn.conv": "ieee",
    "backends.mkldnn.rnn": "none",
}
OLDER = {
    "backends.cudnn.allow_tf32": True,
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction": True,
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": True,
    "backends.cuda.matmul.allow_fp16_accumulation": True,
    "float32_matmul_precision": "medium",
}
FP32 = {
    **dict.fromkeys(NEWER, "ieee"),
    "backends.cudnn.allow_tf32": False,
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction": False,
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": False,
    "backends.cuda.matmul.allow_fp16_accumulation": False,
    "float32_matmul_precision": "highest",
}
TF32 = {
    **FP32,
    **{name: "tf32" for name in NEWER if name.startswith(("backends.cudnn", "backends.cuda."))},
    "backends.cudnn.allow_tf32": True,
    "float32_matmul_precision": "high",
}


class Torch:
    """What the switches are, by name; `interrupt_at` is the access during which the user interrupts."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {**NEWER, **OLDER}
        self.accesses = 0
        self.interrupt_at: int | None = None
        self.backends = Backend(self, "backends")

    def access(self) -> None:
        self.accesses += 1
        if self.accesses == self.interrupt_at:
            raise KeyboardInterrupt

    def get_float32_matmul_precision(self) -> str:
        self.access()
        return str(self.state["float32_matmul_precision"])

    def set_float32_matmul_precision(self, precision: str) -> None:
        self.access()
        self.state["float32_matmul_precision"] = precision

    def lack(self, *names: str) -> None:
        for name in names:
            del self.state[name]


class Backend:
    """torch.backends or a module or object below it, which has what the state names."""

    def __init__(self, root: Torch, name: str) -> None:
        self.__dict__.update(_root=root, _name=name)

    def _key(self, attribute: str) -> str:
        return self._name if attribute == "fp32_precision" else f"{self._name}.{attribute}"

    def __getattr__(self, attribute: str) -> Any:
        key, state = self._key(attribute), self._root.state
        if key in state and attribute in ("fp32_precision", *(name.rpartition(".")[2] for name in OLDER)):
            self._root.access()
            return state[key]
        if attribute != "fp32_precision" and any(name.startswith(key) for name in state):
            return Backend(self._root, key)
        raise AttributeError(key)

    def __setattr__(self, attribute: str, value: Any) -> None:
        key = self._key(attribute)
        if key not in self._root.state:
            raise AttributeError(key)
        self._root.access()
        self._root.state[key] = value


def installed(monkeypatch: pytest.MonkeyPatch, root: Torch) -> Torch:
    monkeypatch.setattr(product_switches, "torch", root)
    monkeypatch.setattr(product_switches, "_BACKENDS", root.backends)
    monkeypatch.setattr(product_switches, "_NEWER", product_switches.newer_switches(root))
    root.accesses = 0
    return root


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Torch:
    return installed(monkeypatch, Torch())


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


def entered(precision: Any) -> Any:
    mode = product_mode(precision)
    mode.__enter__()
    return mode


def left(mode: Any) -> None:
    mode.__exit__(None, None, None)


def test_the_same_precision_within_itself_touches_no_switch(switches: Torch) -> None:
    with product_mode("tf32"):
        before = switches.accesses
        with product_mode("tf32"), product_mode("tf32"):
            assert switches.state == TF32
        assert switches.accesses == before
        assert switches.state == TF32
    assert switches.state == {**NEWER, **OLDER}


@pytest.mark.parametrize(("outer", "inner"), [("fp32", "tf32"), ("tf32", "bf16")])
def test_another_precision_within_one_holds_until_its_end(switches: Torch, outer: Any, inner: Any) -> None:
    expected = {outer: TF32 if outer == "tf32" else FP32, inner: TF32 if inner == "tf32" else FP32}
    with product_mode(outer):
        with product_mode(inner):
            with product_mode(inner), product_mode(outer):
                assert switches.state == expected[outer]
            assert switches.state == expected[inner]
        assert switches.state == expected[outer]
    assert switches.state == {**NEWER, **OLDER}


def test_contexts_that_end_in_the_order_they_began_leave_the_callers_switches(switches: Torch) -> None:
    first, second = entered("fp32"), entered("tf32")
    left(first)
    assert switches.state == TF32
    left(second)
    assert switches.state == {**NEWER, **OLDER}


def test_a_second_thread_with_the_same_precision_touches_no_switch(switches: Torch, other: ThreadPoolExecutor) -> None:
    mine = entered("tf32")
    before = switches.accesses
    others = other.submit(entered, "tf32").result()
    left(mine)
    assert switches.accesses == before
    assert switches.state == TF32
    other.submit(left, others).result()
    assert switches.state == {**NEWER, **OLDER}


def test_precisions_without_tf32_share_the_switches(switches: Torch, other: ThreadPoolExecutor) -> None:
    with product_mode("fp64"):
        others = other.submit(entered, "bf16").result()
        assert switches.state == FP32
        other.submit(left, others).result()


@pytest.mark.parametrize(("mine", "others"), [("fp32", "tf32"), ("tf32", "fp64")])
def test_a_second_thread_with_another_precision_is_refused_and_may_try_again(
    switches: Torch, other: ThreadPoolExecutor, mine: Any, others: Any
) -> None:
    with product_mode(mine):
        inside = dict(switches.state)
        with pytest.raises(ConfigurationError, match="use one precision in all threads"):
            other.submit(entered, others).result()
        assert switches.state == inside
    assert switches.state == {**NEWER, **OLDER}
    left(other.submit(entered, others).result())
    assert switches.state == {**NEWER, **OLDER}


def test_a_thread_may_change_the_mode_only_while_it_is_alone(switches: Torch, other: ThreadPoolExecutor) -> None:
    with product_mode("fp32"):
        others = other.submit(entered, "fp32").result()
        with pytest.raises(ConfigurationError, match="Two threads"):
            entered("tf32")
        assert switches.state == FP32
        other.submit(left, others).result()
        with product_mode("tf32"):
            for precision in ("fp32", "tf32"):  # this one too: it would last longer than the change
                with pytest.raises(ConfigurationError, match="Two threads"):
                    other.submit(entered, precision).result()
            assert switches.state == TF32
        left(other.submit(entered, "fp32").result())
        assert switches.state == FP32
    assert switches.state == {**NEWER, **OLDER}


def test_an_interrupt_at_any_access_leaves_the_callers_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = installed(monkeypatch, Torch())
    with product_mode("fp32"), product_mode("tf32"):
        pass
    assert whole.accesses > 4 * len(NEWER)
    for at in range(1, whole.accesses + 1):
        switches = installed(monkeypatch, Torch())
        switches.interrupt_at = at
        with pytest.raises(KeyboardInterrupt), product_mode("fp32"), product_mode("tf32"):
            pass
        assert switches.state == {**NEWER, **OLDER}, at
        with product_mode("tf32"):
            assert switches.state == TF32
        assert switches.state == {**NEWER, **OLDER}


@pytest.mark.parametrize("missing", [(name,) for name in NEWER] + [tuple(NEWER)])
@pytest.mark.parametrize(("precision", "inside"), [("fp32", FP32), ("tf32", TF32)])
def test_newer_switches_that_a_release_lacks_are_left_out(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], precision: Any, inside: dict[str, Any]
) -> None:
    root = Torch()
    root.lack(*missing)
    before = dict(root.state)
    switches = installed(monkeypatch, root)
    with product_mode(precision):
        assert switches.state == {name: value for name, value in inside.items() if name not in missing}
    assert switches.state == before


def test_this_pytorch_has_every_newer_switch() -> None:
    assert list(product_switches.newer_switches(product_switches.torch)) == list(NEWER)
