"""Batched tensors on a thread that was not told of the vmap, as autograd's threads of a GPU are not."""

from __future__ import annotations

import threading

import pytest
import torch

from hvp_engine import ops
from hvp_engine.system.torch_private import add_batch_dim, enter_vmap, leave_vmap, remove_batch_dim


def on_another_thread(function):
    """What a function returns on a new thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("apply", [ops.gelu, ops.softmax, lambda x: ops.attention(x, x, x)])
def test_a_fused_operation_is_the_same_on_a_thread_without_the_level(apply):
    x = torch.randn(3, 2, 4, 8)
    wanted = torch.stack([apply(row) for row in x])
    level = enter_vmap()
    try:
        batched = add_batch_dim(x, 0, level)
        here = apply(batched)
        there = on_another_thread(lambda: apply(batched))
    finally:
        leave_vmap()
    for found in (here, there):
        torch.testing.assert_close(remove_batch_dim(found, level, 3, 0), wanted)
