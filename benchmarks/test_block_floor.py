"""One block's product against the matrix products that it cannot avoid, timed alone in the same run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from baselines.best_practice import BestPracticeHessian
from jobs import gpt_job, mean_loss
from timing import alternate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hvp_engine as he

aten = torch.ops.aten
PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}


class ProductShapes(TorchDispatchMode):
    """Record the shapes of the matrix products that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[torch.Size, torch.Size]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = PRODUCTS.get(func)
        if first is not None:
            self.shapes[args[first].shape, args[first + 1].shape] += 1
        return func(*args, **(kwargs or {}))


def floor(shapes: Counter[tuple[torch.Size, torch.Size]]):
    """Return a function that runs products of these shapes and nothing else."""
    operands: dict[torch.Size, Tensor] = {size: torch.randn(size) for pair in shapes for size in pair}
    outputs = {pair: torch.matmul(operands[pair[0]], operands[pair[1]]) for pair in shapes}

    def run() -> None:
        for (left, right), count in shapes.items():
            for _ in range(count):
                torch.matmul(operands[left], operands[right], out=outputs[left, right])

    return run


def test_one_block_against_its_own_products(benchmark, size):
    """Record time over that of the plain path's products (attention's and the head's among them), per block.

    The plain path multiplies all pairs of tokens; fused causal attention leaves half of them out, so that a block may
    take less than its "floor".
    """
    torch.set_num_threads(2)
    job = gpt_job(size)
    vectors = job.vectors()
    engine = he.HessianOperator(job.model, he.losses.causal_lm, {n: [t] for n, t in job.blocks.items()}, data=job.data)
    names = [n for n in vectors if n == "wte" or n.startswith(("0.", f"{job.model.config.layers - 1}."))]
    ratios: dict[str, float] = {}
    for name in names:
        recorder = ProductShapes()
        plain = BestPracticeHessian(job.model, mean_loss, job.data, job.blocks)
        leaf = dict(job.model.named_parameters())[job.blocks[name]]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            (gradient,) = torch.autograd.grad(plain.loss(job.model, job.data[0]), [leaf], create_graph=True)
        with recorder:
            torch.autograd.grad(gradient, leaf, vectors[name].view_as(leaf))
        del gradient
        one = {name: vectors[name][None]}
        medians = alternate(
            {"engine": lambda one=one: engine.matmat(one), "products": floor(recorder.shapes)}, rounds=7
        )
        ratios[name] = medians["engine"] / medians["products"]
    benchmark.extra_info.update(size=size, worst=max(ratios.values()), **{f"block {n}": r for n, r in ratios.items()})
    last = {names[-1]: vectors[names[-1]][None]}
    benchmark.pedantic(engine.matmat, (last,), rounds=1)
