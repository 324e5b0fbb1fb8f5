"""The switches of attention are the caller's again, whoever leaves last and whatever interrupts it."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest
import torch

from hvp_engine.problem import attention_switches
from hvp_engine.problem.attention_switches import math_attention

CUDA = torch.backends.cuda


def switches() -> tuple[bool, ...]:
    return (
        CUDA.flash_sdp_enabled(),
        CUDA.mem_efficient_sdp_enabled(),
        CUDA.cudnn_sdp_enabled(),
        CUDA.math_sdp_enabled(),
    )


@pytest.fixture(autouse=True)
def flash_and_math_alone() -> Any:
    """A state that is neither PyTorch's own nor the one held."""
    before = switches()
    CUDA.enable_mem_efficient_sdp(False)
    yield
    for enable, value in zip(
        (CUDA.enable_flash_sdp, CUDA.enable_mem_efficient_sdp, CUDA.enable_cudnn_sdp, CUDA.enable_math_sdp),
        before,
        strict=True,
    ):
        enable(value)


def test_only_the_math_path_is_on_inside() -> None:
    before = switches()
    with math_attention():
        with math_attention():
            assert switches() == (False, False, False, True)
        assert switches() == (False, False, False, True)
    assert switches() == before


def test_threads_that_leave_in_another_order_restore_what_was_before_both() -> None:
    before = switches()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with math_attention():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with math_attention():
        thread.start()
        entered.wait()
    assert switches() == (False, False, False, True)  # the other thread still computes
    leave.set()
    thread.join()
    assert switches() == before


def test_an_interrupt_at_any_line_leaves_the_switches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    # A tracer interrupts between a lock's release and the line of it, where no signal does; other tests need theirs.
    monkeypatch.setattr(attention_switches._switches, "_lock", threading.RLock())
    before = switches()
    for moment in range(1000):
        seen = 0

        def interrupt(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal seen
            if not frame.f_code.co_filename.endswith(("shared_state.py", "attention_switches.py")):
                return None
            if event == "line":
                seen += 1
                if seen == moment + 1:  # noqa: B023 - used within this turn
                    raise KeyboardInterrupt
            return interrupt

        hold = math_attention()
        tracer = sys.gettrace()
        sys.settrace(interrupt)
        try:
            with hold:
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracer)
        if seen <= moment:
            break
        # As a `with` statement that the interrupt fell into after its body would go on.
        hold.__exit__()
        assert switches() == before, f"after line {moment + 1}"
    assert moment > 10
