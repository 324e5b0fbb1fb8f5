"""What a launcher such as torchrun says of this process; known without loading torch.distributed."""

from __future__ import annotations

import os

_MANY = "1"


def is_launched() -> bool:
    """Say whether a launcher started this process as one of several."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", _MANY) != _MANY


def launched_rank() -> int:
    """Return this process's number among those that a launcher started; 0 where none did."""
    return int(os.environ["RANK"]) if is_launched() else 0


def take_own_gpu() -> None:
    """Let ``"cuda"`` mean another GPU in each of several processes of a host; call before a model is made."""
    local = os.environ.get("LOCAL_RANK")
    if not is_launched() or local is None:
        return
    import torch  # noqa: PLC0415 - the command starts quickly

    if torch.cuda.is_available():
        torch.cuda.set_device(int(local))
