"""The rules of sizes: what fits, and what a budget goes to."""

from __future__ import annotations

import pytest
import torch

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.krylov.registry import Storage
from hvp_engine.scheduling import policy
from hvp_engine.scheduling.policy import GraphSize, HeadSizes
from hvp_engine.scheduling.waves import StreamSizes

MIB = 1 << 20


def test_a_graph_is_a_line_through_one_and_two_samples() -> None:
    graph = GraphSize.measured(9, {1: 130, 2: 160}.__getitem__)
    assert (graph.fixed, graph.per_sample) == (100, 30) and graph.of(9) == 370
    assert GraphSize.measured(None, {None: 55}.__getitem__).of(None) == 55
    assert GraphSize.measured(1, {1: 70}.__getitem__).of(1) == 70
    assert GraphSize.measured(4, {1: 80, 2: 60}.__getitem__).per_sample == 0  # a smaller graph of more samples is noise


@pytest.mark.parametrize(
    ("budget", "asked", "chosen"),
    [(10_000, None, 16), (1_000, None, 4), (1_000, 3, 3), (10_000, 99, 16), (250, None, 1)],
)
def test_the_micro_batch_is_halved_until_its_graph_and_temporaries_fit(
    budget: int, asked: int | None, chosen: int
) -> None:
    graph = GraphSize(20.0, 100.0)
    assert policy.choose_microbatch(graph, 16, budget, asked) == chosen
    assert graph.working(chosen) <= budget


@pytest.mark.parametrize(
    ("budget", "stream", "chosen"),
    [(10_000, 1_000, 16), (3_300, 1_000, 8), (1_300, 1_000, 1), (1_200, 1_000, 1), (1_240, 1_000, 1)],
)
def test_micro_batches_are_halved_until_a_streams_vectors_fit_beside_their_graph(
    budget: int, stream: int, chosen: int
) -> None:
    graph = GraphSize(20.0, 100.0)
    assert policy.make_room(graph, 16, budget, stream) == chosen  # 1 where nothing helps: refused later, in words
    assert policy.make_room(graph, None, budget, stream) is None


def test_a_budget_leaves_something_to_libraries_and_is_found_again_from_what_it_leaves() -> None:
    assert policy.usable(None, 123) == 123
    for memory in (1_000, 10**6, 10**8, 10**10):
        left = policy.usable(memory, 0)
        assert memory - policy.LIBRARIES <= left <= memory
        assert left <= policy.usable(policy.memory_for(left), 0) <= left + 2
    assert policy.usable(1_000, 0) == 1_000


def test_less_than_one_sample_is_refused_with_the_sizes() -> None:
    with pytest.raises(OutOfMemoryError, match="needs about 240 B with the temporaries .* the budget is 100 B"):
        policy.choose_microbatch(GraphSize(20.0, 100.0), 16, 100)


def test_passes_stay_in_the_caches_of_a_cpu_and_in_a_quarter_of_a_gpus_budget() -> None:
    assert policy.choose_streams_per_pass(2 * MIB, 0, 10**12, on_cpu=True) == 12
    assert policy.choose_streams_per_pass(2 * MIB, 0, 10**12, on_cpu=False) == 16
    assert policy.choose_streams_per_pass(100 * MIB, 0, 1200 * MIB, on_cpu=False) == 3
    assert policy.choose_streams_per_pass(100 * MIB, 0, 0, on_cpu=True) == 1


def test_long_vectors_leave_a_pass_room_for_fewer() -> None:
    assert policy.choose_streams_per_pass(2 * MIB, MIB, 10**12, on_cpu=True) == 4
    assert policy.choose_streams_per_pass(2 * MIB, 3 * MIB, 10**12, on_cpu=True) == 1
    assert policy.choose_streams_per_pass(60 * MIB, 10 * MIB, 1200 * MIB, on_cpu=False) == 3


def test_vectors_take_what_a_graph_and_the_heads_curvature_leave() -> None:
    streams = StreamSizes({"a": 10, "b": 1000}, 4, 3, torch.float32, Storage(torch.float32))
    one, other = (4 + 3) * 10 * 4, (4 + 3) * 1000 * 4
    assert (streams.bytes_of("a"), streams.bytes_of("b")) == (one, other)
    graph, held = 500, 300
    working = 2 * graph
    all_of_them = policy.choose_waves(streams, working + held + 3 * (one + other), working, held)
    assert len(all_of_them.groups) == 1 and all_of_them.vector_bytes == 3 * (one + other)
    tight = policy.choose_waves(streams, working + held + 3 * (one + other) - 1, working, held)
    assert [len(group) for group in tight.groups] == [5, 1]
    with pytest.raises(OutOfMemoryError, match="One stream of block 'b' \\(1,000 parameters, 4 steps\\)"):
        policy.choose_waves(streams, working + held + other - 1, working, held)


def test_graphs_stay_in_a_share_of_what_is_left_and_one_always_can_be_built() -> None:
    left = policy.budget_of_graphs(10_000, 1_000, 4_000)
    assert left == 6_000 and policy.count_kept_graphs(500, 0, 1_000, left) == 6
    assert policy.count_kept_graphs(500, 500, 1_000, left) == 3  # each with the gradient at its root
    assert policy.budget_of_graphs(10_000, 1_000, 20_000) == 1_000


@pytest.mark.parametrize(
    ("products", "budget", "left", "disk", "on_cpu", "place"),
    [
        (10**7, 10**12, 10**9, 0, True, "memory"),
        (10**7, 10**12, 10**9, 0, False, "device memory"),
        (10**7, 10**12, 10**6, 0, True, None),  # Lanczos vectors need it
        (10**7, 10**12, 10**6, 10**12, True, "disk"),
        (10**7, 10**6, 10**9, 10**12, True, "disk"),
        (10**7, 10**6, 10**9, 10**12, False, None),  # a GPU keeps them or has none
        (10**7, 10**6, 10**9, 10**6, True, None),
        (1, 10**12, 10**9, 0, True, None),  # forming would cost more than it saves
    ],
)
def test_the_heads_curvature_goes_where_it_fits_if_it_pays(
    products: int, budget: int, left: int, disk: int, on_cpu: bool, place: str | None
) -> None:
    head = HeadSizes(tokens=1000, hidden_size=64, classes=5000, products=products)
    plan = policy.choose_curvature(head, "fp32", budget, left, disk, on_cpu=on_cpu)
    assert (plan and plan.place) == place
    if plan is not None:
        assert plan.bytes == 1000 * 64 * 65 // 2 * 4
        assert plan.memory_bytes == (0 if place == "disk" else plan.bytes)


def test_rows_of_logits_are_scaled_from_a_few_samples() -> None:
    assert policy.head_tokens(14, 2) == 14 and policy.head_tokens(7, 1) == 7
    assert policy.head_tokens(14, 9) == 63 and policy.head_tokens(50, None) == 50


def test_blocks_that_hold_the_head_do_not_use_its_curvature() -> None:
    assert policy.products_past_head({"wte": 100, "wq": 30, "fc": 5}, frozenset({"wte"})) == 35


def test_what_passes_take_beside_any_graph_is_set_apart_once() -> None:
    graph = GraphSize(20.0, 100.0, beside=300)
    assert graph.of(2) == 220
    assert graph.working(2) == 740
    assert graph.fits(2, 740)
    assert not graph.fits(2, 739)
    assert policy.choose_microbatch(graph, 4, 800) == 2
    assert policy.count_kept_graphs(220, 0, 740, 740) == policy.count_kept_graphs(220, 0, 440, 440)
