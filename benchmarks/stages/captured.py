"""A product launched as one CUDA graph, beside the same launched kernel by kernel; prints one JSON object.

A program of its own: a capture that fails leaves generators and streams of its process unfit for anything else.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).resolve().parents[1]
_ROUNDS = 9


def captured(size: str) -> dict[str, Any]:
    """Return milliseconds of both, or the error of the capture."""
    import torch
    from jobs import SIZES
    from timing import alternate

    from hvp_engine.system.formatting import first_line
    from stages.gpt_products import Engine, depths, gpt_on

    device = torch.device("cuda", 0)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):  # backward passes run on the stream of their forward pass
        name, patterns = next(iter(depths(SIZES[size][0]).items()))
        engine = Engine(gpt_on(device, size), {name: patterns}, "bf16")
        vectors = engine.vectors(name)
        call = partial(engine.operator.sweep, vectors)
        for _ in range(3):
            wanted = call()[name]
        launched = alternate({"": call}, _ROUNDS, device=device)[""]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                found = call()[name]
        except Exception as error:  # that of the graph's end hides the one that ended it
            return {"error": first_line(error.__context__ or error), "ms_of_launches": 1e3 * launched}
        replayed = alternate({"": graph.replay}, _ROUNDS, device=device)[""]
        difference = float((found - wanted).norm() / wanted.norm())
    return {"ms": 1e3 * replayed, "ms_of_launches": 1e3 * launched, "difference": difference}


if __name__ == "__main__":
    sys.path[:1] = [str(_BENCHMARKS), str(_BENCHMARKS / "gpu")]  # modules beside this one have names of others
    print(json.dumps(captured(sys.argv[1])))
