"""One command for the whole study.

    python -m benchmarks.real_blocks --cache ~/real_blocks --write

Networks, streams and references are kept in the cache, so that a second run only scores, in minutes; the first takes
hours of two cores, most of them for the references of large blocks, which `--leave-out` does without.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from results import FOLDER, machine

from .adaptive import CALLED, called, replayed
from .bars import coverage
from .equal_error import products_to_equal_error
from .report import markdown
from .zoo import NETWORKS


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for networks, streams and references")
    names = [network.name for network in NETWORKS]
    parser.add_argument(
        "--only", nargs="*", choices=names, metavar="NETWORK", help=f"of {', '.join(names)}; all by default"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the calls with a tolerance")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NETWORK/BLOCK", help="blocks to do without")
    parser.add_argument("--bars", action="store_true", help="count too how often 95 %% bars hold; takes longest")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/real_blocks.json and .md")
    options = parser.parse_args()
    known = {f"{network.name}/{block}" for network in NETWORKS for block in network.blocks}
    if unknown := sorted(set(options.leave_out) - known):
        parser.error(f"unknown blocks: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    study: dict[str, Any] = {"machine": machine(torch.device("cpu")), "equal": [], "replayed": [], "called": []}
    study["bars"] = []
    for whole in NETWORKS:
        if options.only and whole.name not in options.only:
            continue
        kept = {name: of for name, of in whole.blocks.items() if f"{whole.name}/{name}" not in options.leave_out}
        network = replace(whole, blocks=kept)
        study["equal"] += products_to_equal_error(network, options.cache)
        study["replayed"] += replayed(network, options.cache)
        for tolerance, seed in product(CALLED, options.seeds):
            study["called"] += called(network, options.cache, tolerance, seed)
        if options.bars:
            study["bars"] += coverage(network, options.cache)
        print(f"{network.name} is done.", flush=True)
    table = markdown(study)
    print(table)
    if options.write:
        (FOLDER / "real_blocks.json").write_text(json.dumps(study, indent=1) + "\n")
        (FOLDER / "real_blocks.md").write_text(table)


if __name__ == "__main__":
    main()
