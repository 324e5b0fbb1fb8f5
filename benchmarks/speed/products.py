"""Single products, sixteen at once, and first ones, of the full Hessian of small networks against other packages."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from rivals import RIVALS, Product, Task
from timing import alternate, seconds
from torch import Tensor

import hvp_engine as he

from .networks import NETWORKS, TINY, Network, engine_job, relative
from .table import Row, Target

OURS = "hvp_engine"
TOLERANCE = 1e-4
VECTORS = 16
BLOCK = 0.2  # seconds that are timed at once: many turns of the scheduler where others compute too
WARM_UP = 0.5  # seconds, or five calls


def settled(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of a call of each method when it has been called a few times, timed in turn."""
    repeats = {}
    for name, method in methods.items():
        start, calls = time.perf_counter(), 0
        while calls < 5 and time.perf_counter() - start < WARM_UP:
            taken = seconds(method)
            calls += 1
        repeats[name] = max(1, math.ceil(BLOCK / taken))

    def repeated(name: str) -> None:
        for _ in range(repeats[name]):
            methods[name]()

    medians = alternate({name: partial(repeated, name) for name in methods}, rounds, warm_up=False)
    return {name: median / repeats[name] for name, median in medians.items()}


def of_engine(task: Task) -> he.HessianOperator:
    """Build our operator of a task's full Hessian."""
    return he.HessianOperator(**engine_job(task))


def rival_products(network: Network, expected: Tensor) -> tuple[dict[str, Product], list[str]]:
    """Build the products of all rivals that are installed and right, and say why others are left out."""
    found, left_out = {}, []
    for name, rival in RIVALS.items():
        if not rival.installed:
            left_out.append(f"{name} (not installed)")
            continue
        task = network.make()
        product = rival.product(task)
        error = relative(product(task.vectors(1)[0]), expected)
        if error > TOLERANCE:
            left_out.append(f"{name} (wrong by {error:.1e})")
        else:
            found[name] = product
    return found, left_out


def products(case: str, network: Network, rounds: int) -> list[Row]:
    """Time one product and sixteen at once, the gradient's graph kept, against the fastest rival's."""
    task = network.make()
    vectors = task.vectors(VECTORS)
    expected = RIVALS["plain autograd"].product(network.make())(vectors[0])
    engine = of_engine(task)
    for several in (vectors[:1], vectors):
        error = relative(engine.matmat({"full": several})["full"][0], expected)
        if error > TOLERANCE:
            raise SystemExit(f"Our product of {case} is wrong by {error:.1e}.")
    rivals, left_out = rival_products(network, expected)
    methods: dict[str, Callable[[], object]] = {
        OURS: lambda: engine.matmat({"full": vectors[:1]}),
        "sixteen": lambda: engine.matmat({"full": vectors}),
        **{name: partial(product, vectors[0]) for name, product in rivals.items()},
    }
    medians = settled(methods, rounds)
    best = min(rivals, key=medians.__getitem__)
    others = {name: medians[name] for name in rivals}
    notes = [f"left out: {', '.join(left_out)}"] if left_out else []
    return [
        Row("product", case, medians[OURS], medians[best], best, Target(1.5, floor=1.2), others, notes),
        Row("16 vectors", case, medians["sixteen"], VECTORS * medians[best], f"16 x {best}", Target(network.sixteen)),
    ]


def first_product(task: Task, name: str) -> float:
    """Seconds from a fresh model to its first product."""
    vector = task.vectors(1)[0]
    try:
        if name == OURS:
            return seconds(lambda: he.hvp(vectors={"full": vector[None]}, **engine_job(task)))
        return seconds(lambda: RIVALS[name].product(task)(vector))
    finally:
        task.model.zero_grad()  # PyHessian leaves its graph in the gradients


def first(case: str, network: Network, rounds: int) -> tuple[Row, str]:
    """Time the first product of fresh models in one process; return the row and the fastest rival."""
    expected = RIVALS["plain autograd"].product(network.make())(network.make().vectors(1)[0])
    names = [OURS, *rival_products(network, expected)[0]]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            taken = first_product(network.make(), name)
            if turn:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians.pop(OURS)
    best = min(medians, key=medians.__getitem__)
    return Row("first product, fresh model", case, ours, medians[best], best, Target(0.8), medians), best


def in_this_process(case: str, name: str, threads: int) -> float:
    """Time the first product of this process; what runs it is a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    return first_product((NETWORKS | TINY)[case].make(), name)


def first_of_process(case: str, rival: str, rounds: int) -> Row:
    """Time the first product of fresh processes, after their imports, against one rival's."""
    times: dict[str, list[float]] = {OURS: [], rival: []}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for name, values in times.items():
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                values.append(pool.submit(in_this_process, case, name, torch.get_num_threads()).result())
    ours, theirs = statistics.median(times[OURS]), statistics.median(times[rival])
    return Row("first product, fresh process", case, ours, theirs, rival, Target(0.8))


def rows_of_products(wanted: set[str], networks: dict[str, Network], rounds: int) -> Iterator[Row]:
    """Measure the rows of this file that were asked for."""
    for case, network in networks.items():
        if "product" in wanted:
            yield from products(case, network, rounds)
    for case, network in networks.items():
        if "first" in wanted:
            row, best = first(case, network, rounds)
            yield row
            yield first_of_process(case, best, rounds)
