"""Several threads at work at once: each gets the bits that it would get alone, and the process stays as it was."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign import numbers
from global_state import changes, generators, model_state, snapshot
from problems import CASES, Case

import hvp_engine as he

THREADS, ROUNDS = 4, 4
LARGE = 96 << 20  # bytes that an allocator which keeps nothing returns at once

Task = Callable[[], Any]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def products(case: Case, precision: Any, seed: int) -> Any:
    """Products with blocks of a model."""
    blocks = dict(case.model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    vectors = {name: torch.randn(3, p.numel(), generator=generator, dtype=dtype) for name, p in blocks.items()}
    found = he.hvp(case.model, case.loss, vectors, "parameter", data=case.data, precision=precision)
    return {name: product.numpy().tobytes() for name, product in found.items()}


def spectra(case: Case, precision: Any, seed: int, out: Path | None = None) -> Any:
    """Spectra of a model's blocks."""
    options = {"steps": 6, "probes": 2, "seed": seed, "precision": precision, "out": out}
    found = he.slq(case.model, case.loss, "parameter", data=case.data, **options)  # type: ignore[arg-type]
    return {name: {key: x.tobytes() for key, x in arrays.items()} for name, arrays in numbers(found).items()}


def together(tasks: list[Task]) -> list[Any]:
    """Begin all tasks at the same moment, each in a thread of its own; return what each gave or raised."""
    barrier = threading.Barrier(len(tasks))
    given: list[Any] = [None] * len(tasks)

    def work(number: int) -> None:
        barrier.wait()
        try:
            given[number] = tasks[number]()
        except Exception as error:
            given[number] = error

    threads = [threading.Thread(target=work, args=(number,), name=f"task {number}") for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return given


def draw(chance: random.Random, cases: list[Case], precision: str, out: Path) -> tuple[Task, Task]:
    """A task, alone and beside others: the same but for the run folder."""
    case, seed = chance.choice(cases), chance.randrange(3)
    kind = chance.choice(["hvp", "slq", "slq with a folder"])
    if kind == "hvp":
        task = lambda: products(case, precision, seed)  # noqa: E731
        return task, task
    folder = out if kind.endswith("folder") else None
    return lambda: spectra(case, precision, seed), lambda: spectra(case, precision, seed, folder)


def warmed_up() -> None:
    """Let the product and PyTorch load what they load once."""
    for make in CASES.values():
        products(make(), "fp32", 0)
        spectra(make(), "fp64", 0)


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("models", ["one model", "a model each"])
def test_threads_get_the_bits_that_they_would_get_alone(
    tmp_path: Path, precision: str, models: str, chance: random.Random, tally: Counter[str]
) -> None:
    warmed_up()
    for number in range(ROUNDS):
        made = [make() for make in CASES.values()]
        cases = made if models == "a model each" else [chance.choice(made)]
        tasks = [draw(chance, cases, precision, tmp_path / f"{number} {k}") for k in range(THREADS)]
        wanted = [alone() for alone, _ in tasks]
        models_before = [model_state(case.model) for case in made]
        before = snapshot()
        found = together([beside for _, beside in tasks])
        assert not changes(before, snapshot())
        for one, other in zip(found, wanted, strict=True):
            assert not isinstance(one, Exception), one
            assert one == other
        for case, state in zip(made, models_before, strict=True):
            assert not changes(state, model_state(case.model))
        tally["calls in threads beside others"] += len(tasks)


def test_threads_that_fail_leave_the_process_as_it_was(tally: Counter[str]) -> None:
    warmed_up()
    case = CASES["gpt"]()

    def failing(model: Any, batch: Any) -> Any:
        raise ZeroDivisionError

    def task(loss: Any) -> Task:
        return lambda: spectra(Case(case.model, loss, case.data), "fp32", 0)

    wanted = task(case.loss)()
    before = snapshot()
    for _ in range(ROUNDS):
        found = together([task(case.loss), task(failing), task(case.loss), task(failing)])
        assert [isinstance(one, Exception) for one in found] == [False, True, False, True], found
        assert found[0] == found[2] == wanted
        tally["calls in threads that raise"] += 2
    assert not changes(before, snapshot())


def test_threads_that_draw_random_numbers_of_their_own_are_not_disturbed() -> None:
    """A caller's thread computes with a generator of its own, and nobody draws from the global ones."""
    warmed_up()
    case, generator = CASES["mlp"](), torch.Generator()

    def own() -> Any:
        generator.manual_seed(0)
        return torch.cat([torch.randn(1, 8, generator=generator) for _ in range(500)])

    wanted, before = own(), generators()
    found = together([own, lambda: spectra(case, "fp32", 0), lambda: products(case, "fp32", 1)])
    assert torch.equal(found[0], wanted)
    assert generators() == before


def test_memory_that_the_caller_frees_goes_back_after_threads_were_at_work() -> None:
    warmed_up()
    case = CASES["mlp"]()
    together([lambda: spectra(case, "fp32", 0)] * THREADS)
    block = torch.ones(LARGE, dtype=torch.uint8)
    held = resident()
    del block
    assert held - resident() > LARGE * 3 // 4
