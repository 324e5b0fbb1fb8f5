"""How much of a head's logits exists at once: as ever on a CPU, by the memory of a job on a GPU."""

from __future__ import annotations

import pytest
import torch
from problems import gpt

import hvp_engine as he
from hvp_engine.ops.head import by_tokens
from hvp_engine.ops.head.by_classes import _panels
from hvp_engine.ops.head.by_tokens import HeadInputs, HeadOptions
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy
from hvp_engine.ops.head.room import ON_CPU, HeadRoom, granted, head_room, room_on

GIB, MIB = 1 << 30, 1 << 20


def head(rows: int, classes: int, room: HeadRoom) -> HeadInputs:
    """A head of bfloat16 numbers without memory."""
    hidden, weight = (torch.empty(n, 8, dtype=torch.bfloat16, device="meta") for n in (rows, classes))
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    return HeadInputs(hidden, weight, None, target, None, HeadOptions(-100, 0.0, room))


def test_a_gpu_has_large_chunks_within_a_share_of_the_jobs_memory() -> None:
    assert head_room(64 * GIB, on_cpu=False) == head_room(500 * GIB, on_cpu=False) == HeadRoom(GIB, 128 * MIB)
    assert head_room(40 * GIB, on_cpu=False) == head_room(33 * GIB, on_cpu=False) == HeadRoom(512 * MIB, 64 * MIB)
    for budget in (1, GIB, 7 * GIB):
        assert head_room(budget, on_cpu=False) == ON_CPU
    assert head_room(500 * GIB, on_cpu=True) == ON_CPU
    for budget in range(GIB, 200 * GIB, 7 * GIB // 3):
        room = head_room(budget, on_cpu=False)
        assert 0 <= room.beyond <= budget // 32
        assert 2 * room.panel_bytes <= 2 * room.chunk_bytes


def test_gpt2_goes_through_its_head_in_one_chunk_and_seven_panels() -> None:
    large = head(8192, 50304, head_room(64 * GIB, on_cpu=False))
    assert len(list(large.chunks())) == 1
    assert len(list(_panels(large, 2))) == 7
    small = head(8192, 50304, ON_CPU)
    assert len(list(small.chunks())) == 13
    assert len(list(_panels(small, 2))) == 52


def test_without_a_grant_a_device_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 24 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert room_on(torch.device("cuda", 0)) == head_room(24 * GIB, on_cpu=False) == HeadRoom(256 * MIB, 32 * MIB)
    assert room_on(torch.device("cpu")) == ON_CPU
    with granted(HeadRoom(5, 6)):
        assert room_on(torch.device("cuda", 0)) == room_on(torch.device("cpu")) == HeadRoom(5, 6)
    assert room_on(torch.device("cpu")) == ON_CPU


def test_every_pass_has_the_room_that_the_loss_was_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_tokens, "MIN_CHUNK_ROWS", 2)
    seen = []
    chunk_rows = HeadInputs.chunk_rows
    monkeypatch.setattr(HeadInputs, "chunk_rows", lambda self: seen.append(self.options.room) or chunk_rows(self))
    hidden, weight = torch.randn(40, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    room = HeadRoom(16 * 9 * 4, ON_CPU.panel_bytes)
    with granted(room):
        loss = linear_cross_entropy(hidden, weight, torch.zeros(40, dtype=torch.int64))
    first = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
    torch.autograd.grad(sum(g.square().sum() for g in first), (hidden, weight))
    assert len(seen) > 3
    assert set(seen) == {room}


def test_a_job_grants_its_loss_what_its_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    room = HeadRoom(80 * MIB, 20 * MIB)
    asked = []
    monkeypatch.setattr(
        "hvp_engine.operators.operator.head_room", lambda budget, on_cpu: asked.append((budget, on_cpu)) or room
    )
    case = gpt()
    operator = he.HessianOperator(case.model, case.loss, data=case.data, memory=1 << 30)
    ((budget, on_cpu),) = asked
    assert on_cpu
    assert 0.9 * (1 << 30) < budget < 1 << 30
    assert operator.head is not None
    with operator.objective.arithmetic():
        assert room_on(torch.device("cpu")) == room
    assert room_on(torch.device("cpu")) == ON_CPU
    assert room.beyond == 32 * MIB
    assert operator.scheduler.working_bytes == 2 * operator.scheduler.plan.graph_bytes + room.beyond
