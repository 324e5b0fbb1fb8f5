"""The kernels of the losses give the same results with every instruction set of this machine."""

import os
import subprocess
import sys

import pytest
import torch
from loss_checks import values_and_products

from hvp_engine.kernels.loader import native
from hvp_engine.ops.cross_entropy import cross_entropy
from hvp_engine.ops.embedding import embedding
from hvp_engine.ops.head.curvature import form_head_curvature
from hvp_engine.ops.softmax import softmax

NAMES = ["baseline", "avx2", "avx512"]


def results():
    """Values and derivatives of every kernel at sizes with and without vector remainders."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for classes in (1, 2, 31, 129, 1025):
            x, u = (torch.randn(5, classes, generator=generator).to(dtype) for _ in range(2))
            target = torch.randint(0, classes, (5,), generator=generator)
            losses = (
                lambda x, t=target: cross_entropy(x, t, label_smoothing=0.1),
                lambda x: softmax(x).square().sum(),
                lambda x, t=target: embedding(t % 5, x).square().sum(),
            )
            for loss in losses:
                out += values_and_products(loss, [x], [u])
        hidden, weight = torch.randn(5, 33, generator=generator), torch.randn(67, 33, generator=generator)
        out.append(form_head_curvature(hidden.double(), weight.double(), dtype=dtype).apply(hidden))
    return out


@pytest.mark.parametrize("name", NAMES[: NAMES.index(native.isa())])
def test_narrower_instruction_sets_agree_with_the_widest(name, tmp_path):
    path = tmp_path / "results.pt"
    program = f"import torch, test_losses_isa as t; torch.save([t.native.isa(), t.results()], {str(path)!r})"
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "HVP_ENGINE_ISA": name, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    used, other = torch.load(path)
    assert used == name
    for a, b in zip(results(), other, strict=True):
        tolerance = {"rtol": 2**-7, "atol": 1e-4} if a.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(a, b, **tolerance)
