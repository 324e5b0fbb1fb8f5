"""The softmax head's share of a job, and what it costs when its curvature is formed once and applied ever after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hvp_engine.ops.head.curvature import HeadCost, head_cost
from hvp_engine.planning.counting import Counts
from hvp_engine.planning.devices import Device
from hvp_engine.planning.meter import Operation, Work
from hvp_engine.planning.parts import PartCost, operations
from hvp_engine.planning.setting import Setting
from hvp_engine.problem.precision import Precision, product_dtype
from hvp_engine.scheduling.policy import CURVATURE_DTYPES

_DISK = 1e9  # bytes per second from the page cache or a disk
_LARGEST_SHARE = 0.9  # of a second backward pass that the head may be taken to be


@dataclass(frozen=True)
class HeadPasses:
    """The head in one second backward pass of one micro-batch: through the classes, and by its curvature.

    Attributes:
        cost: From :func:`hvp_engine.ops.head.curvature.head_cost`.
        general: Logits' tangents, and products' way back.
        applied: The matrices applied to one vector per token.
    """

    cost: HeadCost
    general: PartCost
    applied: PartCost

    def general_within(self, part: PartCost) -> PartCost:
        """Return the general path as a piece of a second backward pass, never more than most of it."""
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

    def formed(self, sweeps: int, setting: Setting, device: Device, place: str) -> PartCost:
        """Forming every micro-batch's matrices once, and reading at every sweep those that are on disk."""
        count = setting.microbatches * setting.share
        precision: Precision = "fp32" if setting.precision == "bf16" and not device.measured else setting.precision
        seconds, limit, _ = device.bound(Operation(self.cost.form_flop, self.cost.stored_bytes, "head"), precision)
        stored = count * self.cost.stored_bytes
        moved = sweeps * stored if place == "disk" else 0.0
        return PartCost(self.cost.form_flop * count, stored + moved, seconds * count + moved / _DISK, limit)


def head_passes(counts: Counts, device: Device, setting: Setting) -> HeadPasses | None:
    """Return the head's passes on a device, None for a model without a softmax head."""
    head = counts.head
    if head is None:
        return None
    cost = head_cost(head.tokens, head.hidden_size, head.classes, CURVATURE_DTYPES[setting.precision], kept_logits=True)
    # Two products, and the element-wise rest; the formula's traffic is that of float32.
    size = product_dtype(setting.precision).itemsize
    traffic = cost.general_bytes * size / 4
    product = float(size * (head.tokens * head.classes + head.hidden_size * (head.tokens + head.classes)))
    general = Work(Counter({
        Operation(cost.general_flop / 2, product, "head"): 2,
        Operation(0.0, max(0.0, traffic - 2 * product), "loss"): 1,
    }))  # fmt: skip
    applied = Work(Counter({Operation(cost.apply_flop, cost.apply_bytes, "head"): 1}))
    return HeadPasses(
        cost, operations(general, device, setting.precision), operations(applied, device, setting.precision)
    )
