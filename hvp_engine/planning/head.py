"""The softmax head's share of a job, and what it costs when its curvature is formed once and applied ever after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hvp_engine.ops.head_curvature import HeadCost, head_cost
from hvp_engine.planning.counting import Counts
from hvp_engine.planning.devices import Device
from hvp_engine.planning.parts import Part
from hvp_engine.planning.setting import Setting
from hvp_engine.precision import Precision

_STORED: dict[Precision, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.bfloat16,
    "bf16": torch.bfloat16,
}
_MEMORY_SHARE = 0.25  # of the budget, for matrices on the device; more is moved in once per sweep and micro-batch
_HOST_LINK = 25e9  # bytes per second from host memory to a GPU (PCIe 4.0 x 16)
_DISK = 1e9  # bytes per second from the page cache or a disk to a CPU
_LARGEST_SHARE = 0.9  # of a second backward pass that the head may be taken to be


@dataclass(frozen=True)
class HeadPasses:
    """The head in one second backward pass of one micro-batch: through the classes, and by its curvature.

    Attributes:
        cost: From :func:`hvp_engine.ops.head_curvature.head_cost`.
        general: Logits' tangents, and products' way back.
        applied: The matrices applied to one vector per token.
    """

    cost: HeadCost
    general: Part
    applied: Part

    def general_within(self, part: Part) -> Part:
        """The general path as a piece of a second backward pass, never more than most of it."""
        share = min(
            1.0,
            *(
                _LARGEST_SHARE * whole / max(piece, 1e-30)
                for whole, piece in (
                    (part.flop, self.general.flop),
                    (part.bytes, self.general.bytes),
                    (part.seconds, self.general.seconds),
                )
            ),
        )
        return self.general.times(share)

    def formed(self, sweeps: int, setting: Setting, device: Device) -> Part:
        """Forming every micro-batch's matrices once, and moving in at every sweep those that do not fit."""
        count = setting.microbatches * setting.share
        precision: Precision = "fp32" if setting.precision == "bf16" and not device.measured else setting.precision
        seconds, limit = device.bound(self.cost.form_flop, self.cost.stored_bytes, precision)
        stored = count * self.cost.stored_bytes
        moved = 0.0 if stored <= _MEMORY_SHARE * setting.budget else sweeps * stored
        link = _DISK if device.measured else _HOST_LINK
        return Part(self.cost.form_flop * count, stored + moved, seconds * count + moved / link, limit)


def head_passes(counts: Counts, device: Device, setting: Setting) -> HeadPasses | None:
    """The head's passes on a device, None for a model without a softmax head."""
    head = counts.head
    if head is None:
        return None
    cost = head_cost(head.tokens, head.hidden_size, head.classes, _STORED[setting.precision], kept_logits=True)
    # Two products, and the element-wise rest.
    product = 4.0 * (head.tokens * head.classes + head.hidden_size * (head.tokens + head.classes))
    each, limit = device.bound(cost.general_flop / 2, product, setting.precision)
    rest, _ = device.bound(0.0, max(0.0, cost.general_bytes - 2 * product), setting.precision)
    general = Part(cost.general_flop, cost.general_bytes, 2 * each + rest, limit)
    seconds, limit = device.bound(0.0, cost.apply_bytes, setting.precision)
    return HeadPasses(cost, general, Part(cost.apply_flop, cost.apply_bytes, seconds, limit))
