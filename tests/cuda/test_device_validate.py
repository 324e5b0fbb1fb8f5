"""benchmarks/gpu_validate.py run on an emulated device, whole, so that a card does not meet its code first."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import pytest
import torch
from device_process import on_device

from hvp_engine.experiments.models.gpt import GPTConfig

pytestmark = pytest.mark.usefixtures("emulated_device")

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@on_device
def test_the_command_checks_times_and_reports(backend, tmp_path):
    import gpu_validate
    import jobs
    from emulated_device import NAME, interpreted_triton
    from validation import kernels, operations, products, timings

    tiny = GPTConfig(vocabulary=31, context=8, layers=1, heads=2, width=16), 1
    blocks = dict(list(jobs.paper_blocks(tiny[0]).items())[:3])
    few = {"gelu"} if backend == "triton" else set(operations.cases(True))
    chosen = {name: case for name, case in operations.cases(True).items() if name in few}
    with ExitStack() as stack:
        if backend == "triton":
            stack.enter_context(interpreted_triton())
            # Whole calls through the interpreter take minutes; the same code runs with the other backend.
            for module, name in ((products, "check_hvp"), (products, "check_slq"), (products, "check_no_wait")):
                stack.enter_context(patch.object(module, name, lambda *arguments: iter(())))
            stack.enter_context(patch.object(timings, "time_sweep", lambda *arguments: iter(())))
            stack.enter_context(patch.object(kernels, "_SHAPES", ((2, 1), (31, 7), (5, 0))))
        small = partial(gpu_validate.run, small=True, backends=[backend])
        for target, name, value in (
            (gpu_validate, "run", small),
            (jobs, "SIZES", {"tiny": tiny}),
            (jobs, "paper_blocks", lambda config: blocks),
            (products, "STEPS", 2),
            (products, "PROBES", 1),
            (timings, "ROUNDS", 1),
            (timings, "CASES", {name: case for name, case in timings.CASES.items() if name in few}),
            (operations, "cases", lambda small: chosen),
        ):
            stack.enter_context(patch.object(target, name, value))
        code = gpu_validate.main(["--out", str(tmp_path / "report.md")])
    text = (tmp_path / "report.md").read_text()
    assert code == 0, text
    assert NAME in text
    assert "**All checks passed.**" in text
    named = {
        "cuda": ["hvp, bf16", "slq, bf16", "waits for the device | 0 |", "sweep", "quadrature"],
        "triton": ["attention", "gelu", "head curvature", "cross_entropy", "second_backward"],
    }[backend] + ["reorthogonalize", "record step"]
    assert [name for name in named if name not in text] == [], text
    assert "not measured" not in text.lower(), text


@on_device
def test_what_depends_on_the_card_is_found_for_known_and_unknown_ones():
    import gpu_validate
    import roofline
    from timing import peak_gib, waiting
    from validation import timings

    assert set(gpu_validate.dtypes_of(CUDA)) == {"fp32", "bf16"}
    top = timings.ceilings(CUDA, small=True)
    assert top.name.startswith("A100")
    assert timings.product_peak(top, "bf16") > timings.product_peak(top, "fp32") > 0
    with patch.object(torch.cuda, "get_device_name", lambda device: "NVIDIA Unheard-of 1"):
        other = timings.ceilings(CUDA, small=True)
    assert other.fp32 == float("inf")
    assert timings.product_peak(other, "fp32") is None
    sizes = timings._sizes(CUDA, small=False)
    free, _ = torch.cuda.mem_get_info(CUDA)
    assert 0 < 4 * sizes.streams * sizes.rows * sizes.columns <= free
    assert sizes.columns <= roofline.REFERENCE.columns
    assert waiting(lambda: 7, CUDA)() == 7
    assert peak_gib(lambda: torch.ones(1 << 20, device=CUDA), CUDA) is not None
