"""Compile on any machine what the stages of gpu_stages.py launch through Triton on a card.

    python benchmarks/gpu_warm.py record FILE [--architecture 90] [--only ceilings,attention] [--small]
    python benchmarks/gpu_warm.py compile FILE [--cache FOLDER] [--jobs 2]

The first line follows every stage with the sizes that it has on a card, computing nothing large, and writes down what
it would compile; it needs a CPU build of PyTorch (gpu/shapes_only.py, gpu/compile_only.py). The second line compiles
that, in processes, into a cache of Triton's: by any PyTorch, and by the Triton that will launch it. Exit code 1: a
stage ended early, so that launches may be missing, or a variant did not compile.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "gpu")]

from gpu_stages import STAGES  # noqa: E402

if TYPE_CHECKING:
    from compile_only import Launch

DEVICES = Path(tempfile.gettempdir()) / "hvp-engine-gpu"  # keeps what shapes_only.py compiles


def follow(module: str, architecture: int, small: bool) -> tuple[list[Launch], list[dict[str, Any]], str]:
    """Follow one stage, in this process, on an emulated card.

    Returns:
        What it would compile, the rows that it emitted, and the error that ended it or "".
    """
    import shapes_only

    shapes_only.install(shapes_only.CARDS[architecture], DEVICES)
    import torch
    import unmeasured
    from compile_only import recorded

    unmeasured.call_once()
    rows: list[dict[str, Any]] = []
    error = ""
    with recorded(architecture) as launches:
        try:
            importlib.import_module(module).run(lambda **row: rows.append(row), torch.device("cuda", 0), small)
        except AssertionError as wrong:  # numbers are not computed: checks must fail
            rows.append({"what": "verdict", "note": str(wrong)})
        except Exception:
            error = traceback.format_exc()
    return launches, rows, error


def follow_elsewhere(module: str, architecture: int, small: bool) -> tuple[list[Launch], list[dict[str, Any]], str]:
    """Do what `follow` does in a process of its own: PyTorch decides once what devices it has."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found"
        command = [sys.executable, __file__, "record", str(out), "--here", module, "--architecture", str(architecture)]
        done = subprocess.run(
            [*command, *(["--small"] if small else [])], stderr=subprocess.PIPE, text=True, check=False
        )
        if not out.exists():
            return [], [], f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
        return pickle.loads(out.read_bytes())


def _unlike(launches: Iterable[Launch]) -> list[Launch]:
    """Leave each variant once."""
    return list({repr(launch): launch for launch in launches}.values())


def record(options: argparse.Namespace) -> int:
    """Follow stages and write what they would compile; return the exit code."""
    if options.here is not None:
        options.file.write_bytes(pickle.dumps(follow(options.here, options.architecture, options.small)))
        return 0
    wanted = [stage for stage in STAGES if options.only is None or stage.name in options.only.split(",")]
    launches: list[Launch] = []
    failed = False
    with ThreadPoolExecutor(options.jobs) as pool:
        followed = pool.map(lambda s: follow_elsewhere(s.module, options.architecture, options.small), wanted)
        for stage, (found, rows, error) in zip(wanted, followed, strict=True):
            launches += found
            failed |= bool(error)
            print(f"{stage.name}: {len(found)} variants, {len(rows)} rows{': ' + error if error else ''}", flush=True)
            if options.rows:
                print("\n".join(f"    {row}" for row in rows))
    launches = _unlike(launches)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_bytes(pickle.dumps(launches))
    kernels = {launch.kernel for launch in launches}
    print(f"{len(launches)} variants of {len(kernels)} kernels for sm_{options.architecture}")
    return int(failed or not launches)


def _compile(launch: Launch) -> tuple[str, str, bool, float]:
    from compile_only import compile_launch
    from launchers import build_launcher

    done = compile_launch(launch)
    if done.kernel is not None:
        build_launcher(done.kernel)
    return launch.kernel.name, done.error, done.from_cache, done.seconds


def compile_all(options: argparse.Namespace) -> int:
    """Compile what was recorded; return the exit code."""
    began = time.perf_counter()
    if options.cache is not None:
        os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    import triton
    from launchers import unloaded_launchers

    launches = pickle.loads(options.file.read_bytes())
    forked = multiprocessing.get_context("fork")  # the processes have what is imported and replaced here
    with (
        tempfile.TemporaryDirectory() as folder,
        unloaded_launchers(Path(folder)),
        ProcessPoolExecutor(options.jobs, forked) as pool,
    ):
        found = list(pool.map(_compile, launches))
    errors = [error for _, error, _, _ in found if error]
    cached = sum(from_cache for _, _, from_cache, _ in found)
    print("\n".join(errors), end="\n" if errors else "")
    kernels, taken = len({name for name, *_ in found}), sum(seconds for *_, seconds in found)
    print(
        f"triton {triton.__version__}: {len(found)} variants of {kernels} kernels, {cached} from the cache, "
        f"{len(errors)} failures; {taken:.0f} s of compiling in {time.perf_counter() - began:.0f} s"
    )
    return int(bool(errors))


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or compile; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compile"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--architecture", type=int, choices=(80, 90), default=90)
    parser.add_argument("--only", help="stages by name, separated by commas")
    parser.add_argument("--small", action="store_true", help="the stages' small sizes")
    parser.add_argument("--rows", action="store_true", help="print what the stages emit; the numbers mean nothing")
    parser.add_argument("--cache", type=Path, help="folder of the cache; Triton's own by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--here", metavar="MODULE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    return record(options) if options.what == "record" else compile_all(options)


if __name__ == "__main__":
    sys.exit(main())
