"""The table of times against others: products, first products, sweeps, whole jobs; quiet, and beside busy processes.

    python benchmarks/speed_table.py --rounds 5 --busy 2 --write
    python benchmarks/speed_table.py --rows product first        # some of them

Everything is timed in turn in one run, with two threads, and medians are compared. Rivals are taken as they are
installed (`pip install pyhessian hessian-eigenthings curvlinops-for-pytorch cola-ml`); those that are not are left out,
and the table says so. All rows take about half an hour and 8 GB on two cores, twice that with ``--busy``.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from jobs import gpt_job
from results import FOLDER, machine
from speed.busy import busy
from speed.networks import NETWORKS, TINY
from speed.products import rows_of_products
from speed.sweeps import has_bf16, head_in_bf16, long_job, sweep
from speed.table import Row, joined, markdown

THREADS = 2
ROWS = ("product", "first", "sweep", "medium", "bf16", "head")


def measured(wanted: set[str], rounds: int, tiny: bool) -> Iterator[Row]:
    """Measure the rows that were asked for, one after the other."""
    yield from rows_of_products(wanted, TINY if tiny else NETWORKS, rounds)
    if "sweep" in wanted:
        yield from sweep("tiny" if tiny else "laptop", rounds)
    if "medium" in wanted:
        yield from long_job("tiny" if tiny else "medium", "fp32", rounds)
    if "bf16" in wanted and has_bf16():
        yield from long_job("tiny" if tiny else "medium", "bf16", rounds)


def remarks(wanted: set[str], tiny: bool) -> list[str]:
    """Say what is no time."""
    said = []
    if "bf16" in wanted and not has_bf16():
        said.append("the bf16 rows are left out: this processor has no bf16 instructions")
    if "head" in wanted:
        said.append(head_in_bf16(gpt_job("tiny" if tiny else "laptop")))
    return said


def told(rows: Iterator[Row]) -> list[Row]:
    """Print each row when it is there, and return them all."""
    found = []
    for row in rows:
        print(" | ".join(row.cells()), flush=True)
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS, help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of everybody; at most 3 for medium sweeps")
    parser.add_argument("--busy", type=int, default=0, help="measure a second time beside as many busy processes")
    parser.add_argument("--tiny", action="store_true", help="sizes of seconds, to try this program")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/speed_table.md")
    options = parser.parse_args(argv)
    wanted = set(options.rows)
    torch.set_num_threads(THREADS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rivals warn about their own use of PyTorch
        rows = told(measured(wanted, options.rounds, options.tiny))
        if options.busy:
            print(f"beside {options.busy} busy processes:", flush=True)
            with busy(options.busy):
                rows = joined(rows, told(measured(wanted, options.rounds, options.tiny)))
        text = markdown(
            rows,
            machine(torch.device("cpu")) | {"rounds": options.rounds},
            options.busy,
            remarks(wanted, options.tiny),
        )
    print(text)
    if options.write:
        (FOLDER / "speed_table.md").write_text(text)


if __name__ == "__main__":
    main()
