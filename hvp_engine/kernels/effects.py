"""What the kernels of operations write to: whoever records a pass must know, since no dispatcher sees them.

Every function gets the arguments of the backends' function of its family and name, and returns those that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["WRITTEN"]

Written = Callable[..., Sequence[Any]]

WRITTEN: dict[tuple[str, str], Written] = {
    ("activations", "run_elementwise"): lambda name, kind, batch, size, inputs, outputs: outputs,
    ("attention", "attention_forward"): lambda x, out: (x.statistics, out),
    ("attention", "attention_backward"): lambda x, grad_out, grads: grads,
    ("attention", "attention_second"): lambda x, grad_out, tangents, outputs: outputs,
    ("cross_entropy", "cross_entropy_forward"): lambda rows, statistics, loss: (statistics, loss),
    ("cross_entropy", "cross_entropy_backward"): lambda rows, statistics, scale, grad: (grad,),
    ("cross_entropy", "cross_entropy_hvp"): lambda rows, statistics, scale, tangent, product, slope: (product, slope),
    ("embedding", "gather_rows"): lambda table, tokens, rows: (rows,),
    ("embedding", "sum_rows"): lambda grad, tokens, order, table: (table,),
    ("normalize", "normalize_forward"): lambda shape, eps, x, w, b, y, statistics: (y, statistics),
    ("normalize", "normalize_backward"): lambda shape, inputs, dx, dw, db: (dx, dw, db),
    ("normalize", "normalize_double_backward"): lambda shape, inputs, d_g, d_x, d_w: (d_g, d_x, d_w),
    ("packed_symmetric", "packed_matvec"): lambda packed, vectors, out: (out,),
    ("softmax", "softmax_forward"): lambda x, out: (out,),
    ("softmax", "softmax_backward"): lambda p, g, out: (out,),
    ("softmax", "softmax_double_backward"): lambda p, g, u, wrt_x, wrt_g: (wrt_x, wrt_g),
    ("softmax", "softmax_tangent"): lambda logits, statistics, factor, center, tangent, totals: (tangent, totals),
}
