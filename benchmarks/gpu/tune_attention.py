"""Time the attention kernels on a GPU with one tiling after the other, and check each against float64.

    python benchmarks/gpu/tune_attention.py --out tune.jsonl [--seconds 100]

Every line of the output is one measurement, written at once: what a killed run has measured is kept. A tiling that does
not compile, needs too much shared memory or fails otherwise is a line with its error. All variants are compiled by as
many processes as there are processors, while the first are timed. The last lines of a case time the passes with the
best tilings of each kernel; PyTorch's own attention is timed beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import triton
from attention_candidates import CASES, Case, candidates, usual
from device_timing import errors, milliseconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from hvp_engine.kernels.records import AttentionInputs
from hvp_engine.kernels.triton import attention as kernels
from hvp_engine.kernels.triton import attention_tiling
from hvp_engine.kernels.triton.attention_tiling import Tiling
from hvp_engine.ops.attention import attention_ref
from hvp_engine.ops.written_out import attention_second as exact_second
from hvp_engine.problem.precision import product_mode

Table = dict[str, Tiling]
KERNELS = ("attention_forward", "attention_outputs", "attention_queries", "attention_keys")
PASSES = ("forward", "backward", "second")
DEVICE = "cuda"
WRONG = 0.1  # a relative error that is no rounding
RESULTS = ("out_query", "out_key", "out_value", "out_grad_out")


@dataclass
class Operands:
    """Tensors of a case, as a model's linear layers lay them out, and the results of all passes."""

    case: Case
    device: str
    filled: bool
    x: AttentionInputs = field(init=False)
    grad_out: Tensor = field(init=False)
    tangents: list[Tensor] = field(init=False)
    results: dict[str, list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        q, k, v, self.grad_out, *self.tangents = (self._tensor(fill=True) for _ in range(7))
        statistics_ = torch.empty((*q.shape[:-1], 2), device=self.device)
        self.x = AttentionInputs(q, k, v, None, statistics_, self.case.width**-0.5, True)
        sizes = {"forward": 1, "backward": 3, "second": 4}
        self.results = {name: [self._tensor(fill=False) for _ in range(n)] for name, n in sizes.items()}

    def _tensor(self, *, fill: bool) -> Tensor:
        case = self.case
        shape = (case.batch, case.length, case.heads, case.width)
        if fill and self.filled:
            return torch.randn(shape, device=self.device).to(case.dtype).transpose(1, 2)
        return torch.empty(shape, device=self.device, dtype=case.dtype).transpose(1, 2)

    def run(self, name: str) -> None:
        """Run one pass into its results."""
        results = self.results[name]
        if name == "forward":
            kernels.attention_forward(self.x, results[0])
        elif name == "backward":
            kernels.attention_backward(self.x, self.grad_out, results)
        else:
            kernels.attention_second(self.x, self.grad_out, self.tangents, results)


@contextlib.contextmanager
def tiled(case: Case, table: Table, capability: int) -> Iterator[None]:
    """Use the tilings of `table`, and the usual ones of kernels that it lacks."""
    table = {**usual(case), **table}

    def choose(kernel: str, dtype: torch.dtype, width: int, *, masked: bool, **_: int) -> Tiling | None:
        own = table.get(kernel)
        if own is None:
            own = attention_tiling.tiling(kernel, dtype, width, masked=masked, architecture=capability)
        return own and own._replace(precision=case.mode) if case.mode == "tf32x3" else own

    tiles_only = patch.object(kernels, "matrix_strip", lambda *_: None)
    with patch.object(kernels, "tiling", choose), tiles_only, product_mode("tf32" if case.mode == "tf32" else "fp32"):
        yield


class _Compiler:
    """Stands for a GPU where there is none, for Triton's compiler."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_variants(case: Case, name: str, table: Table, only: str | None, capability: int) -> dict[str, Any]:
    """Compile what a pass launches, or one kernel of it, into Triton's cache; runs in a process without a GPU."""
    driver.set_active(_Compiler(capability))
    began = time.perf_counter()
    run, launch = JITFunction.run, kernels._launch
    compiled: list[Any] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))

    def launch_one(kernel: Any, *rest: Any) -> None:
        if only in (None, kernel.__name__):
            launch(kernel, *rest)

    with (
        tiled(case, table, capability),
        patch.object(JITFunction, "run", compile_only),
        patch.object(kernels, "_launch", launch_one),
        patch.object(torch.cuda, "device_of", lambda _: contextlib.nullcontext()),
    ):
        try:
            Operands(case, "cpu", filled=False).run(name)
        except Exception as error:  # Triton's passes raise errors of many types
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"compile_s": round(time.perf_counter() - began, 2)}


class Tuner:
    """Measures on the current device and writes lines until the time is up."""

    def __init__(self, out: Path, deadline: float, pool: ProcessPoolExecutor, capability: int) -> None:
        self.out = out.open("a")
        self.deadline = deadline
        self.capability = capability
        self.jobs: dict[tuple[Case, str, Tiling | None], Future[dict[str, Any]]] = {}
        for case in CASES:  # in the order in which they are measured
            for name in PASSES:
                self.jobs[case, name, None] = pool.submit(compile_variants, case, name, {}, None, capability)
            for name in kernel_names(case):
                for tile in candidates(case, name):
                    job = pool.submit(compile_variants, case, _pass_of(name), {name: tile}, name, capability)
                    self.jobs[case, name, tile] = job

    def write(self, **row: Any) -> None:
        """Write one line."""
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()

    def compiled(self, job: Future[dict[str, Any]]) -> dict[str, Any]:
        """Wait for a compilation, not past the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return job.result(timeout=left)

    def tune(self, case: Case) -> None:
        """Measure everything about one case."""
        about = {"mode": case.mode, "heads": case.heads, "width": case.width}
        operands = Operands(case, DEVICE, filled=True)
        exact = exact_results(operands)
        self.plain(case, operands, exact, about)
        for name in PASSES:
            self.compiled(self.jobs[case, name, None])
            self.time_pass(operands, exact, name, {}, {"kind": "pass", "path": "present tilings", **about})
        if case.mode in ("tf32", "ieee"):
            self.matrices(operands, exact, about)
        best: Table = {}
        for name in kernel_names(case):
            rows = [self.time_kernel(operands, exact, name, tile, about) for tile in candidates(case, name)]
            usual = self.time_kernel(operands, exact, name, None, about)
            pairs = zip(rows, candidates(case, name), strict=True)
            found = [(row["ms"], tile) for row, tile in pairs if "ms" in row and max(row["errors"]) < WRONG]
            quickest = min(found, key=lambda pair: pair[0], default=None)
            if quickest is not None and quickest[0] < usual.get("ms", float("inf")):
                best[name] = quickest[1]
        shown = {kernel: list(tile) for kernel, tile in best.items()}
        for name in ("forward", "second"):
            row = {"kind": "pass", "path": "best tilings", "tilings": shown, **about}
            self.time_pass(operands, exact, name, best, row)

    def matrices(self, operands: Operands, exact: dict[str, list[Tensor]], about: dict[str, Any]) -> None:
        """Write the times with whole matrices of scores, for several sizes of their strips."""
        case = operands.case
        for mebibytes, rows in ((512, 256), (256, 256), (128, 256), (512, 128), (2048, 1024)):
            bounds = {"MATRIX_BYTES": mebibytes << 20, "MATRIX_ROWS": rows}
            with patch.multiple(attention_tiling, **bounds), product_mode("tf32" if case.mode == "tf32" else "fp32"):
                for name in ("backward", "second"):
                    row = {"kind": "pass", "path": "matrices", "MiB": mebibytes, "rows": rows, **about}
                    self._time_pass(operands, exact, name, row)

    def time_pass(
        self, operands: Operands, exact: dict[str, list[Tensor]], name: str, table: Table, row: dict[str, Any]
    ) -> None:
        """Write the time and errors of a pass by tiles."""
        with tiled(operands.case, table, self.capability):
            self._time_pass(operands, exact, name, row)

    def _time_pass(self, operands: Operands, exact: dict[str, list[Tensor]], name: str, row: dict[str, Any]) -> None:
        with _failures(row):
            row["ms"] = milliseconds(lambda: operands.run(name))
            row["errors"] = errors(operands.results[name], exact[name])
        self.write(**{"pass": name, **row})

    def time_kernel(
        self, operands: Operands, exact: dict[str, list[Tensor]], name: str, tile: Tiling | None, about: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the time of one kernel with one tiling, None for the present one, and the errors of its pass."""
        case, table = operands.case, ({} if tile is None else {name: tile})
        row: dict[str, Any] = {"kind": "kernel", "kernel": name, "tiling": tile and list(tile), **about}
        if tile is not None:
            row.update(self.compiled(self.jobs[case, name, tile]))
        if "error" not in row:
            with tiled(case, table, self.capability), _failures(row):
                launches: list[tuple[Any, ...]] = []
                which = _pass_of(name)
                with _recorded(name, launches):
                    operands.run(which)
                row["errors"] = errors(operands.results[which], exact[which])
                if not launches:
                    raise ValueError("The kernel does not serve this case.")
                with _registers(row):
                    _replay(launches)
                row["ms"] = milliseconds(lambda: _replay(launches))
        self.write(**row)
        return row

    def plain(self, case: Case, operands: Operands, exact: dict[str, list[Tensor]], about: dict[str, Any]) -> None:
        """Write the times of PyTorch's own attention in the dtype of the case."""
        for path, function in _plain_functions(case).items():
            row: dict[str, Any] = {"kind": "plain", "path": path, **about}
            with product_mode("tf32" if case.mode == "tf32" else "fp32"), _failures(row):
                row.update(_time_plain(function, operands, exact, second=path != "flash"))
            self.write(**row)
            torch.cuda.empty_cache()


def kernel_names(case: Case) -> list[str]:
    """Name the kernels that have candidates, in the order of their passes."""
    return [name for name in KERNELS if candidates(case, name)]


def _pass_of(kernel: str) -> str:
    return "forward" if kernel == "attention_forward" else "second"


@contextlib.contextmanager
def _failures(row: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the compiler, the driver or the package
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"


@contextlib.contextmanager
def _recorded(name: str, launches: list[tuple[Any, ...]]) -> Iterator[None]:
    """Collect the launches of one kernel, which are made, too."""
    launch = kernels._launch

    def record(kernel: Any, *rest: Any) -> None:
        if kernel.__name__ == name:
            launches.append((kernel, *rest))
        launch(kernel, *rest)

    with patch.object(kernels, "_launch", record):
        yield


def _replay(launches: list[tuple[Any, ...]]) -> None:
    for launch in launches:
        kernels._launch(*launch)


@contextlib.contextmanager
def _registers(row: dict[str, Any]) -> Iterator[None]:
    """Note what the compiled kernel takes."""
    run = JITFunction.run

    def note(self: Any, *args: Any, **options: Any) -> Any:
        compiled = run(self, *args, **options)
        row.update(registers=compiled.n_regs, spills=compiled.n_spills, shared=compiled.metadata.shared)
        return compiled

    with patch.object(JITFunction, "run", note):
        yield


def exact_results(operands: Operands) -> dict[str, list[Tensor]]:
    """Compute all passes in float64 on the device."""
    x = operands.x
    wide = [t.double() for t in (x.query, x.key, x.value)]
    grad_out = operands.grad_out.double()
    leaves = [t.detach().requires_grad_() for t in wide]
    out = attention_ref(*leaves, is_causal=True)
    grads = torch.autograd.grad(out, leaves, grad_out)
    tangents = [t.double() for t in operands.tangents]
    second = exact_second(grad_out, (wide[0], wide[1], wide[2]), (tangents[0], tangents[1], tangents[2]), None,
                          x.scale, x.causal)  # fmt: skip
    return {"forward": [out.detach()], "backward": list(grads), "second": list(second)}


def _plain_functions(case: Case) -> dict[str, Callable[..., Tensor]]:
    def by(backend: SDPBackend) -> Callable[..., Tensor]:
        def function(*operands: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*operands, is_causal=True)

        return function

    found: dict[str, Callable[..., Tensor]] = {
        "written out": lambda *operands: attention_ref(*operands, is_causal=True),
        "math": by(SDPBackend.MATH),
    }
    if case.mode == "bf16":
        found["flash"] = by(SDPBackend.FLASH_ATTENTION)
    return {} if case.mode == "tf32x3" else found


def _time_plain(
    function: Callable[..., Tensor], operands: Operands, exact: dict[str, list[Tensor]], *, second: bool
) -> dict[str, Any]:
    """Time the passes of a differentiable function; the graph of each is built once."""
    x = operands.x
    leaves = [t.detach().requires_grad_() for t in (x.query, x.key, x.value)]
    grad_out = operands.grad_out.detach().requires_grad_()
    row: dict[str, Any] = {"forward_ms": milliseconds(lambda: function(*leaves))}
    out = function(*leaves)
    row["backward_ms"] = milliseconds(lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True))
    if second:
        grads = torch.autograd.grad(out, leaves, grad_out, create_graph=True)
        inputs = [*leaves, grad_out]
        derive = lambda: torch.autograd.grad(grads, inputs, operands.tangents, retain_graph=True)  # noqa: E731
        row["errors"] = errors(list(derive()), exact["second"])
        row["second_ms"] = milliseconds(derive)
    return row


def main() -> None:
    """Measure on the current device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tune.jsonl"))
    parser.add_argument("--seconds", type=float, default=100.0, help="after so long, start no further measurement")
    parser.add_argument("--capability", type=int, default=90, help="of the device: 80 for A100, 90 for H100")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    # Forked before this process touches the device.
    workers = max(1, (os.cpu_count() or 2) - 1)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
    torch.set_num_threads(1)
    tuner = Tuner(options.out, deadline, pool, options.capability)
    torch.manual_seed(0)
    tuner.write(
        kind="machine", device=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__,
        capability=list(torch.cuda.get_device_capability()), results=RESULTS,
    )  # fmt: skip
    try:
        for case in CASES:
            tuner.tune(case)
            torch.cuda.empty_cache()
    except TimeoutError:  # of concurrent.futures, too, since Python 3.11
        tuner.write(kind="end", why="time is up")
    else:
        tuner.write(kind="end", why="done")
    processes = list(pool._processes.values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


if __name__ == "__main__":
    main()
