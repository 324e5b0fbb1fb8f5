"""What every storage of Lanczos vectors must do, against vectors kept in plain lists.

A new storage is tested by one more line in ``STORAGES``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.lanczos_step import record_step
from hvp_engine.kernels.scaled_rows import row_length
from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.krylov import storage
from hvp_engine.krylov.basis import Basis, BlockShape, Layout
from hvp_engine.krylov.mapped import MappedBasis
from hvp_engine.krylov.offloaded import OffloadedBasis
from hvp_engine.krylov.registry import Storage, bytes_per_stream, storage_for
from hvp_engine.krylov.scaled import ScaledBasis
from hvp_engine.krylov.storage import plain_rule


class StorageCase(NamedTuple):
    """A storage, by its dtypes, and what is expected of it."""

    dtype: torch.dtype
    store_dtype: torch.dtype | None
    rounding: float  # largest error of a kept vector's component, relative to it
    bytes: int  # of a stream of 6 vectors of length 100
    own: type[Basis] | None = None  # None for the plain storages

    @property
    def kept(self) -> Storage | None:
        return None if self.store_dtype is None else Storage(self.store_dtype, self.own)


STORAGES = {
    "exact": StorageCase(torch.float32, torch.float32, 0.0, 2400),
    "exact fp64": StorageCase(torch.float64, torch.float64, 0.0, 4800),
    "bf16": StorageCase(torch.float32, torch.bfloat16, 2.0**-8, 1200 + 800),
    "bf16 beside fp64": StorageCase(torch.float64, torch.bfloat16, 2.0**-8, 1200 + 1600),
    "fp32 beside fp64": StorageCase(torch.float64, torch.float32, 2.0**-23, 2400 + 1600),
    "int8": StorageCase(torch.float32, torch.int8, 2.0**-7, 6 * 192 + 800, ScaledBasis),
    "int8 beside fp64": StorageCase(torch.float64, torch.int8, 2.0**-7, 6 * 192 + 1600, ScaledBasis),
    "offloaded": StorageCase(torch.float32, torch.float32, 0.0, 800, OffloadedBasis),
    "offloaded bf16": StorageCase(torch.float32, torch.bfloat16, 2.0**-8, 800, OffloadedBasis),
    "offloaded int8": StorageCase(torch.float32, torch.int8, 2.0**-7, 800, OffloadedBasis),
    "mapped": StorageCase(torch.float32, torch.float32, 0.0, 800, MappedBasis),
    "mapped fp64": StorageCase(torch.float64, torch.float64, 0.0, 1600, MappedBasis),
    "mapped bf16": StorageCase(torch.float32, torch.bfloat16, 2.0**-8, 800, MappedBasis),
    "mapped int8": StorageCase(torch.float32, torch.int8, 2.0**-7, 800, MappedBasis),
    "newest two": StorageCase(torch.float32, None, 0.0, 800),
    "newest two fp64": StorageCase(torch.float64, None, 0.0, 1600),
}
# Ragged: blocks that differ in everything, one of length 1, one that is full after two vectors.
SHAPES = {
    "long": BlockShape(3, 7, 700),
    "odd": BlockShape(1, 7, 129),
    "short": BlockShape(2, 2, 2),
    "one": BlockShape(2, 1, 1),
}
SLOTS = [(block, row) for block, shape in SHAPES.items() for row in range(shape.streams)]
Vectors = dict[tuple[str, int], Tensor]  # (capacity, numel) orthonormal rows by stream


@pytest.fixture(params=sorted(STORAGES))
def kind(request: pytest.FixtureRequest) -> StorageCase:
    return STORAGES[request.param]


def empty(kind: StorageCase) -> Basis:
    layout = Layout(SHAPES, kind.dtype, kind.store_dtype, torch.device("cpu"))
    return storage_for(kind.dtype, kind.kept)(layout)


def orthonormal(dtype: torch.dtype) -> Vectors:
    torch.manual_seed(3)
    bases = {(block, row): torch.randn(SHAPES[block].numel, SHAPES[block].capacity).double() for block, row in SLOTS}
    return {slot: torch.linalg.qr(basis)[0].T.contiguous().to(dtype) for slot, basis in bases.items()}


def filled(kind: StorageCase, vectors: Vectors, count: int) -> Basis:
    basis = empty(kind)
    for position in range(count):
        for slot in with_room(position):
            basis.append(position, slot, vectors[slot][position])
    return basis


def with_room(position: int) -> list[tuple[str, int]]:
    return [(block, row) for block, row in SLOTS if position < SHAPES[block].capacity]


def products(slots: list[tuple[str, int]], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.nn.functional.normalize(torch.randn(SHAPES[block].numel, dtype=dtype), dim=0) for block, _ in slots]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_newest_two_vectors_come_back_unrounded(kind: StorageCase, count: int) -> None:
    vectors = orthonormal(kind.dtype)
    basis = filled(kind, vectors, count)
    for position in range(max(0, count - 2), count):
        for block, row in with_room(count - 1):
            newest = basis.newest(position, block)
            assert newest.shape == (SHAPES[block].streams, SHAPES[block].numel)
            assert torch.equal(newest[row], vectors[block, row][position])


def test_the_step_kernel_writes_what_append_writes(kind: StorageCase) -> None:
    vectors, count = orthonormal(kind.dtype), 4
    wanted, found = filled(kind, vectors, count + 1), filled(kind, vectors, count)
    slots = with_room(count)
    streams = len(slots)
    ones, zeros = torch.ones(streams, dtype=torch.float64), torch.zeros(2, streams, 8, dtype=torch.float64)
    steps, last = torch.full((streams,), count), torch.full((streams,), 8)
    state = LanczosState(*zeros, steps, ones > 0, ones.clone(), ones.clone(), last)
    new = [
        NewVector(index, 2 * vectors[slot][count], *target)
        for index, (slot, target) in enumerate(zip(slots, found.targets(count, slots), strict=True))
    ]
    record_step(state, Step(range(streams), count - 1, ones, 2 * ones, ones, 1e-12), new)
    for block, row in slots:
        assert torch.equal(found.newest(count, block)[row], vectors[block, row][count])
    same(found, wanted, count + 1)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_projection_takes_out_all_that_is_kept(kind: StorageCase, count: int) -> None:
    vectors = orthonormal(kind.dtype)
    basis = filled(kind, vectors, count)
    slots = with_room(count - 1)[1:]  # some streams have ended, among them the first
    inputs = products(slots, kind.dtype)
    results = [v.clone() for v in inputs]
    found = basis.project(count - 1, slots, results)
    eps = torch.finfo(kind.dtype).eps
    for index, slot in enumerate(slots):
        kept = vectors[slot][:count].double()
        kept = kept if basis.keeps_all else kept[-2:]
        v = inputs[index].double()
        expected = v - kept.T @ (kept @ v)
        tolerance = 32 * eps + (2 * kind.rounding if count > 2 else 0.0)
        assert float((results[index] - expected).norm()) <= tolerance
        assert float(found.alphas[index] - kept[-1] @ v) == pytest.approx(0.0, abs=32 * eps)
        assert float(found.betas[index]) == pytest.approx(
            float(results[index].double().norm()), rel=32 * eps, abs=1e-30
        )
        if float(expected.norm()) > 0.1:
            left = 0.0 if kind.store_dtype is None else plain_rule(kind.store_dtype).tolerance
            assert 0.0 <= float(found.loss[index]) <= max(tolerance, left)
    for numbers in found:
        assert numbers.shape == (len(slots),) and numbers.dtype == torch.float64
    assert found.betas.is_contiguous() and found.loss.is_contiguous()


@pytest.mark.parametrize("equal", [(0, 1), (5, 6)], ids=["older", "newest"])
def test_projection_reports_the_orthogonality_that_its_first_pass_over_all_leaves(
    kind: StorageCase, equal: tuple[int, int]
) -> None:
    vectors = orthonormal(kind.dtype)
    slot = ("long", 1)
    other = products([slot], kind.dtype)[0]
    other -= vectors[slot].T @ (vectors[slot] @ other)
    first, second = equal
    direction = vectors[slot][second] = vectors[slot][first]
    basis = filled(kind, vectors, 7)
    product = 0.6 * direction + 0.8 * other / other.norm()
    # One pass takes 0.6 of a unit vector out twice, so that the second pass finds it again with the opposite sign; but
    # not where the newest vector is itself corrected, to nothing here.
    is_newest = equal == (5, 6)
    expected = 0.0 if is_newest and basis.corrects_newest else 0.6 if basis.keeps_all or is_newest else 0.0
    found = basis.project(6, [slot], [product])
    assert float(found.loss[0]) == pytest.approx(expected, abs=0.005)


def test_orthogonality_is_that_of_the_kept_vectors(kind: StorageCase) -> None:
    vectors = orthonormal(kind.dtype)
    slot = ("long", 2)
    vectors[slot][3] += 0.25 * vectors[slot][1]
    basis = filled(kind, vectors, 7)
    if not basis.keeps_all:
        with pytest.raises(ConfigurationError, match="cannot be measured; use reorthogonalize='full'"):
            basis.orthogonality(slot, 7)
        return
    for count in (1, 3, 7):
        rows = vectors[slot][:count].double()
        wanted = float(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(count), 2))
        assert basis.orthogonality(slot, count) == pytest.approx(wanted, abs=1e-6 + 2 * kind.rounding)


def same(found: Basis, wanted: Basis, count: int) -> None:
    """Whatever can be asked of two bases gives the same bits."""
    slots = with_room(count - 1)
    dtype = wanted.newest(count - 1, slots[0][0]).dtype
    mine, theirs = products(slots, dtype), products(slots, dtype)
    for a, b in zip(found.project(count - 1, slots, mine), wanted.project(count - 1, slots, theirs), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)
    for exported, reference in (
        (found.export(0, count), wanted.export(0, count)),
        (found.export_window(), wanted.export_window()),
    ):
        assert exported.keys() == reference.keys()
        for block in exported:
            if SHAPES[block].capacity >= count:
                assert torch.equal(exported[block], reference[block])


@pytest.mark.parametrize("cuts", [(1, 5), (2, 3, 4, 5), (5,), (1, 2, 5)])
def test_a_basis_that_was_exported_in_pieces_is_restored_to_the_same_bits(
    kind: StorageCase, cuts: tuple[int, ...]
) -> None:
    vectors = orthonormal(kind.dtype)
    pieces, first = {}, 0
    for last in cuts:
        written = filled(kind, vectors, last)
        pieces[first, last] = {name: rows.clone() for name, rows in written.export(first, last).items()}
        window = {name: rows.clone() for name, rows in written.export_window().items()}
        first = last
    restored = empty(kind)
    for (first, last), rows in pieces.items():
        restored.restore(first, last, rows)
    restored.restore_window(window)
    for basis in (restored, written):  # both go on
        for slot in with_room(5):
            basis.append(5, slot, vectors[slot][5])
    same(restored, written, 6)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_vectors_are_deflated_by_the_first_of_a_stream_alone(kind: StorageCase, count: int) -> None:
    vectors, slot = orthonormal(kind.dtype), ("long", 1)
    basis = filled(kind, vectors, 7)
    further = products([("long", 0)] * 3, kind.dtype)
    results = [vector.clone() for vector in further]
    if not basis.keeps_all:
        with pytest.raises(ConfigurationError, match="use reorthogonalize='full'"):
            basis.deflate(slot, count, results)
        return
    basis.deflate(slot, count, results)
    kept, eps = vectors[slot][:count].double(), torch.finfo(kind.dtype).eps
    for vector, result in zip(further, results, strict=True):
        wanted = vector.double() - kept.T @ (kept @ vector.double())
        assert float((result - wanted).norm()) <= 32 * eps + 2 * kind.rounding
        assert float(abs(vectors[slot][count].double() @ (vector - result).double())) <= 32 * eps + 2 * kind.rounding


def test_a_released_block_is_neither_exported_nor_wanted_back(kind: StorageCase) -> None:
    vectors = orthonormal(kind.dtype)
    basis, whole = filled(kind, vectors, 4), filled(kind, vectors, 4)
    basis.release("long")
    assert "long" not in basis.export(0, 4) and "long" not in basis.export_window()
    resumed = empty(kind)
    resumed.release("long")
    resumed.restore(0, 4, whole.export(0, 4))  # written before the block was released
    resumed.restore_window(whole.export_window())
    for exported, wanted in (
        (resumed.export(0, 4), basis.export(0, 4)),
        (resumed.export_window(), basis.export_window()),
    ):
        assert exported.keys() == wanted.keys()
        assert torch.equal(resumed.newest(3, "odd"), whole.newest(3, "odd"))


def test_export_holds_the_blocks_that_have_capacity(kind: StorageCase) -> None:
    basis = filled(kind, orthonormal(kind.dtype), 4)
    if not basis.keeps_all:
        assert basis.export(0, 4) == {}
        return
    shapes = {block: rows.shape for block, rows in basis.export(1, 4).items() if block in SHAPES}
    assert kind.store_dtype is not None
    row = {numel: row_length(kind.store_dtype, numel) for numel in (700, 129, 2)}
    assert shapes == {"long": (3, 3, row[700]), "odd": (1, 3, row[129]), "short": (2, 1, row[2])}


def test_what_does_not_fit_is_refused(kind: StorageCase) -> None:
    basis = filled(kind, orthonormal(kind.dtype), 4)
    for exported, restore in (
        (basis.export(0, 4), lambda wrong: basis.restore(0, 4, wrong)),
        (basis.export_window(), basis.restore_window),
    ):
        wrongs = [{**exported, "foreign": torch.zeros(1, 2, 3)}]
        if exported:
            wrongs.append({**exported, "odd": exported["odd"][..., :-1]})
            wrongs.append({name: rows for name, rows in exported.items() if name != "odd"})
        for wrong in wrongs:
            with pytest.raises(ConfigurationError, match="do not fit a basis"):
                restore(wrong)


def test_the_bytes_of_a_stream_are_those_of_its_vectors(kind: StorageCase) -> None:
    assert bytes_per_stream(6, 100, kind.dtype, kind.kept) == kind.bytes
    # A stream takes no more vectors than they are long.
    one = bytes_per_stream(1, 1, kind.dtype, kind.kept)
    assert bytes_per_stream(6, 1, kind.dtype, kind.kept) == one


@pytest.mark.parametrize(("name", "calls"), [("exact", 1), ("bf16", 2), ("newest two", 1)])
def test_the_streams_of_all_blocks_share_a_kernel_call(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    basis = filled(STORAGES[name], orthonormal(torch.float32), 1)
    streams = []
    original = storage.reorthogonalize

    def counted(rows: list[Tensor], vectors: list[Tensor], *further: Any) -> object:
        streams.append(len(vectors))
        return original(rows, vectors, *further)

    monkeypatch.setattr(storage, "reorthogonalize", counted)
    basis.project(0, SLOTS, products(SLOTS, torch.float32))
    assert streams == [len(SLOTS)] * calls
