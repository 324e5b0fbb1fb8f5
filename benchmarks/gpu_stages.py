"""Finds out on one GPU, in minutes, whether everything works there and how fast it is; most valuable first.

    python benchmarks/gpu_stages.py --out FOLDER [--budget 340] [--only ceilings,operations] [--device cpu --small]

FOLDER gets `results.jsonl` (one row per finding, flushed), `results.md` (the table, rewritten after every stage) and
`stderr.log`. A stage that fails, hangs or crashes costs itself alone. `benchmarks/gpu_prepare.sh` builds what a machine
without network needs. Exit code 0: every stage that was run passed; 1: one did not, or none was run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "gpu")]

from stages.runner import Rows, Stage, run_stages, serve  # noqa: E402
from stages.table import markdown  # noqa: E402

STAGES = (
    Stage("ceilings", 25, "stages.ceilings"),
    Stage("operations", 45, "stages.operations"),
    Stage("lanczos kernels", 30, "stages.lanczos_kernels"),
    Stage("whole calls", 45, "stages.whole_calls"),
    Stage("attention", 50, "stages.attention"),
    Stage("gpt2 bf16", 60, "stages.gpt2_bf16"),
    Stage("streams", 30, "stages.streams"),
    Stage("lanczos bandwidth", 25, "stages.lanczos_bandwidth"),
    Stage("gpt2 fp32", 30, "stages.gpt2_fp32"),
    Stage("sanitizer", 40, "stages.sanitizer"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_stages"))
    parser.add_argument("--budget", type=float, default=340, help="seconds for all stages")
    parser.add_argument("--only", help="stages by name, separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.device, options.small)
        return 0
    names = [stage.name for stage in STAGES] if options.only is None else options.only.split(",")
    unknown = sorted(set(names) - {stage.name for stage in STAGES})
    if unknown:
        parser.error(f"unknown stages: {', '.join(unknown)}; known are {', '.join(s.name for s in STAGES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.out, markdown)
    worker = [sys.executable, str(Path(__file__).resolve()), "--worker", "--device", options.device]
    run_stages(
        [stage for stage in STAGES if stage.name in names],
        [*worker, *(["--small"] if options.small else [])],
        rows,
        options.budget,
    )
    print(markdown(rows.rows))
    ended = [row["ok"] for row in rows.rows if row.get("end") and row["ok"] is not None]
    return 0 if ended and all(ended) else 1


def work(device: str, small: bool) -> None:
    """Serve stages on a device, as a worker."""
    from stages.compiled import CompileCounter

    counter = CompileCounter()

    def context() -> tuple[Any, ...]:
        import torch

        where = torch.device(device, 0) if device == "cuda" else torch.device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        return where, small

    serve(STAGES, context, counter.take)


if __name__ == "__main__":
    sys.exit(main())
