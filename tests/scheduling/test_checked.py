"""How much of a job is tested, by sizes."""

from __future__ import annotations

from hvp_engine.scheduling import checked


def test_the_test_of_the_second_derivative_takes_as_many_samples_as_the_job_can_afford() -> None:
    for samples, products, bytes_, expected in (
        (256, 1000, 1 << 20, 256),  # cheap against the job
        (256, 100, 1 << 20, 64),  # 9 * 64 products of one sample are within 4 % of 100 * 256
        (256, 1, 1 << 20, 16),  # a handful costs nothing that matters
        (256, 1000, 1 << 30, 64),  # in float64 a quarter of the graph and its temporaries fill 1 GiB
        (256, 1000, 1 << 40, 1),
    ):
        sizes = checked.CheckedSizes(samples, bytes_, vector_bytes=0, copy_bytes=1)
        assert checked.choose_samples_to_check(sizes, (1 << 30) + 1, products) == expected


def test_the_test_of_the_second_derivative_leaves_float64_and_samples_where_its_vectors_take_the_memory() -> None:
    sizes = checked.CheckedSizes(16, 16_000, vector_bytes=1_000, copy_bytes=5_000)
    wide = 5_000 + 2 * checked.CHECK_VECTORS * 1_000 + 4 * 16_000
    assert sizes.bytes_of(16, widest=True) == wide and checked.is_checked_in_float64(sizes, wide)
    assert checked.choose_samples_to_check(sizes, wide, 1) == 16
    assert checked.choose_samples_to_check(sizes, wide - 1, 1) == 8
    narrow = checked.CHECK_VECTORS * 1_000 + 2 * 16_000
    assert not checked.is_checked_in_float64(sizes, 5_000 + 2 * checked.CHECK_VECTORS * 1_000)
    whole = checked.CheckedSizes(None, 16_000, vector_bytes=1_000, copy_bytes=5_000)
    assert not checked.is_checked_in_float64(whole, narrow) and checked.choose_samples_to_check(whole, 1, 1) is None


def test_with_convolutions_the_test_takes_no_more_than_a_sweep() -> None:
    sizes = checked.CheckedSizes(64, 64 << 20, 0, copy_bytes=1, transient=3.5, widest_transient=10.0)
    assert checked.choose_samples_to_check(sizes, 1 << 40, 10**6) == 8  # of 64: 20 times an eighth is below 3.5
    small = checked.CheckedSizes(64, 1 << 20, 0, copy_bytes=1, transient=3.5, widest_transient=10.0)
    assert checked.choose_samples_to_check(small, 1 << 40, 10**6) == 64


def test_a_graph_with_half_of_its_tensors_in_bfloat16_is_larger_in_the_test() -> None:
    assert checked.unmixed(1000, "bf16") == 1500 and checked.unmixed(1000, "fp32") == 1000
