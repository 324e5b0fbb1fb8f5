"""Streams that are judged as they go, and the products that go along in their sweeps, against dense matrices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hvp_engine.errors import NotFiniteError
from hvp_engine.krylov.adaptive import AdaptiveWave, Rule
from hvp_engine.krylov.companions import SINGLES_AT_ONCE, BlockMatrix
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.krylov.stopping import Verdict
from hvp_engine.krylov.wave import WavePlan, Where
from hvp_engine.results.coefficients import Coefficients

STEPS = 24
CPU = torch.device("cpu")
# Steps after which each block has found enough; "stuck" never has, "low" is exhausted after three steps.
ENOUGH = {"early": 10, "later": 15, "stuck": 99, "low": 99}


def matrices() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    spectra = {
        "early": torch.randn(70, generator=generator),
        "later": torch.linspace(-1, 3, 50),
        "stuck": torch.randn(90, generator=generator).exp(),
        "low": torch.tensor([0.0, 2.0, 5.0]).repeat_interleave(20),
        "small": torch.linspace(-2, 1, 37),
    }
    found = {}
    for name, values in spectra.items():
        q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
        found[name] = q @ torch.diag(values.double()) @ q.T
    return found


DENSE = matrices()


class Sweeps:
    """Multiplies by the dense matrices, and remembers with what."""

    def __init__(self) -> None:
        self.vectors: list[dict[str, Tensor]] = []

    def __call__(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.vectors.append({name: block.clone() for name, block in vectors.items()})
        return {name: block @ DENSE[name].to(block.dtype) for name, block in vectors.items()}

    @property
    def widths(self) -> list[dict[str, int]]:
        return [{name: len(block) for name, block in sweep.items()} for sweep in self.vectors]


def verdicts(
    asked: Collection[str], found: Mapping[str, Coefficients], singles: Mapping[str, Any], more: int = 0
) -> dict[str, Verdict]:
    """Decide by the number of steps alone; ``more`` single products for "later" once it has its first ones."""
    return {
        block: Verdict(
            reached=False,
            steps_suffice=int(found[block].steps[0]) >= ENOUGH[block],
            probes=1,
            singles=more if block == "later" and len(singles[block]) else 0,
            errors={},
        )
        for block in asked
    }


def start(sweeps: Any, dtype: torch.dtype = torch.float64, judge: Any = verdicts, **options: Any) -> AdaptiveWave:
    settings = LanczosSettings(STEPS, options.pop("reorthogonalize", "full"), options.pop("storage", Storage(dtype)))
    starts = {name: {0: probe(0, name, 0, len(DENSE[name]), "gaussian", dtype)} for name in ENOUGH}
    plan = WavePlan(starts, {"small": len(DENSE["small"])}, {})
    return AdaptiveWave(sweeps, plan, settings, Where(dtype, CPU, **options), Rule(judge, 0, 0.0))


def finish(wave: AdaptiveWave) -> list[int]:
    taken = []
    while not wave.finished:
        taken.append(wave.step())
    return taken


def test_blocks_leave_the_sweeps_one_by_one_with_their_single_products_beside_the_others() -> None:
    sweeps = Sweeps()
    taken = finish(start(sweeps))
    widths = sweeps.widths
    assert taken == [sum(sweep.values()) for sweep in widths]
    steps = {name: [sweep.get(name, 0) for sweep in widths] for name in DENSE}
    assert steps["early"] == [1] * 10 + [4] + [0] * 14
    assert steps["later"] == [1] * 15 + [4] + [0] * 9
    assert steps["stuck"] == [1] * STEPS + [4]
    assert steps["low"] == [1] * 3 + [4] + [0] * 21
    assert steps["small"] == [16, 16, 5] + [0] * 22


def test_what_streams_find_is_what_they_find_alone() -> None:
    wave, undisturbed = start(Sweeps()), start(Sweeps(), judge=lambda asked, found, singles: never(asked))
    finish(wave)
    finish(undisturbed)
    for block, whole in undisturbed.coefficients().items():
        found = wave.coefficients()[block]
        m = int(found.steps[0])
        assert m == min(ENOUGH[block], {"low": 3}.get(block, STEPS))
        np.testing.assert_array_equal(found.alphas, whole.alphas[:, :m])
        np.testing.assert_array_equal(found.betas, whole.betas[:, : m - 1])
        np.testing.assert_array_equal(found.residuals, whole.truncated(m).residuals)


def never(asked: Collection[str]) -> dict[str, Verdict]:
    return {block: Verdict(False, False, 1, 0, {}) for block in asked}


@pytest.mark.parametrize(
    ("dtype", "storage", "rounding"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.float32, torch.bfloat16, 2e-2),
    ],
)
def test_single_products_are_those_of_vectors_without_the_first_of_the_basis(
    dtype: torch.dtype, storage: torch.dtype, rounding: float
) -> None:
    sweeps = Sweeps()
    wave = start(sweeps, dtype, storage=Storage(storage))
    finish(wave)
    for block, m in (("early", 10), ("later", 15), ("stuck", STEPS), ("low", 3)):
        stream = [sweep[block][0] for sweep in sweeps.vectors if len(sweep.get(block, ())) == 1]
        (h,) = (sweep[block] for sweep in sweeps.vectors if len(sweep.get(block, ())) == SINGLES_AT_ONCE)
        basis, h = torch.stack(stream).double(), h.double()
        assert len(basis) == m
        assert float((h @ basis[:-1].T).abs().max()) < rounding
        assert torch.linalg.matrix_rank(h) == SINGLES_AT_ONCE
        product = h @ DENSE[block]
        wanted = torch.stack([(h * product).sum(1), product.square().sum(1), (h @ basis[-1]).square()], dim=1)
        assert torch.allclose(wave.singles.of(block), wanted / h.square().sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_the_trace_from_single_products_has_no_bias() -> None:
    def most(asked: Collection[str], found: Mapping[str, Coefficients], singles: Mapping[str, Any]) -> Any:
        return {block: Verdict(False, int(found[block].steps[0]) >= 10, 1, 99, {}) for block in asked}

    wave = start(Sweeps(), judge=most)
    finish(wave)
    for block in ("early", "later", "stuck"):
        found, singles = wave.coefficients()[block], wave.singles.of(block)[:, 0].numpy()
        assert len(singles) == STEPS  # the ceiling
        deflated, rest = int(found.steps[0]) - 1, found.numel - int(found.steps[0]) + 1
        estimate = found.alphas[0, :deflated].sum() + rest * singles.mean()
        spread = rest * singles.std(ddof=1) / len(singles) ** 0.5
        assert abs(estimate - float(DENSE[block].trace())) < 3.5 * spread


def test_single_products_that_are_found_to_be_too_few_get_more_while_the_basis_is_there() -> None:
    sweeps = Sweeps()
    wave = start(sweeps, judge=lambda *arguments: verdicts(*arguments, more=10))
    finish(wave)
    later = [sweep.get("later", 0) for sweep in sweeps.widths]
    assert later == [1] * 15 + [4, 4, 4] + [0] * 7
    vectors = torch.cat([sweep["later"] for sweep in sweeps.vectors if len(sweep.get("later", ())) > 1])
    assert torch.linalg.matrix_rank(vectors) == 12


def test_vectors_are_freed_when_their_block_is_done() -> None:
    wave = start(Sweeps())
    blocks = []
    while not wave.finished:
        wave.step()
        blocks.append(set(wave.basis.export(0, 2)))
    everything = set(ENOUGH)
    assert blocks[2] == everything and blocks[3] == everything - {"low"}
    assert blocks[9] == {"early", "later", "stuck"} and blocks[10] == {"later", "stuck"}
    assert blocks[14] == {"later", "stuck"} and blocks[15] == {"stuck"}
    assert blocks[-1] == set()


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_a_wave_that_is_resumed_after_any_step_gives_the_same_bits(storage: torch.dtype, reorthogonalize: str) -> None:
    def fresh() -> AdaptiveWave:
        return start(Sweeps(), torch.float32, storage=Storage(storage), reorthogonalize=reorthogonalize)

    whole, broken = fresh(), fresh()
    finish(whole)
    rows: dict[tuple[int, int], dict[str, Tensor]] = {}
    while not broken.finished:
        reached = max((last for _, last in rows), default=0)
        broken.step()
        if broken.position + 1 > reached:
            # The newest vector of the piece before was corrected meanwhile.
            first = reached - 1 if reached and broken.basis.corrects_newest else reached
            rows[first, broken.position + 1] = broken.basis.export(first, broken.position + 1)
        window = {name: value.clone() for name, value in broken.basis.export_window().items()}
        again = fresh()
        for name, value in again.scalars.items():
            value.copy_(broken.scalars[name])
        again.resume(broken.position)
        assert (again.left, again.finished) == (broken.left, broken.finished)
        for (first, last), exported in rows.items():
            again.basis.restore(first, last, exported)
        again.basis.restore_window(window)
        broken = again
    for name, value in whole.scalars.items():
        assert torch.equal(broken.scalars[name], value), name


def test_rare_synchronisations_change_no_result() -> None:
    each, rare = start(Sweeps()), start(Sweeps(), sync_every=5)
    finish(each)
    finish(rare)
    for name, value in each.scalars.items():
        assert torch.equal(rare.scalars[name], value), name


def test_without_the_vectors_there_are_no_single_products() -> None:
    sweeps = Sweeps()
    wave = start(sweeps, reorthogonalize="none")
    finish(wave)
    assert {n for sweep in sweeps.widths for name, n in sweep.items() if name != "small"} == {1}
    assert wave.coefficients()["early"].steps.tolist() == [10]
    assert not wave.coefficients()["early"].reorthogonalized


def test_what_is_left_shrinks_to_nothing_and_covers_every_product() -> None:
    wave = start(Sweeps())
    left, taken = [wave.left], []
    while not wave.finished:
        taken.append(wave.step())
        left.append(wave.left)
    assert left[-1] == 0 and int(wave.steps.sum()) == sum(taken)
    for position in range(len(taken)):
        assert left[position] >= sum(taken[position:])


def test_a_single_product_that_is_not_finite_is_refused_with_its_block() -> None:
    def broken(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        products = Sweeps()(vectors)
        if len(vectors.get("early", ())) > 1:
            products["early"][2, 5] = torch.inf
        return products

    with pytest.raises(NotFiniteError, match="of block 'early' is not finite with a deflated vector"):
        finish(start(broken))


def test_a_wave_of_small_blocks_alone_needs_no_streams() -> None:
    sweeps = Sweeps()
    plan = WavePlan({}, {"small": 37, "later": 50}, {})
    rule = Rule(lambda *_: pytest.fail("judged"), 0, 0.0)
    wave = AdaptiveWave(
        sweeps, plan, LanczosSettings(STEPS, "full", Storage(torch.float64)), Where(torch.float64, CPU), rule
    )
    assert finish(wave) == [32, 32, 21, 2]
    for block in plan.small:
        values, noise = wave.matrices[block].eigenvalues(block)
        assert torch.allclose(values, torch.linalg.eigvalsh(DENSE[block]), atol=1e-12)
        assert noise < 1e-15


@pytest.mark.parametrize("noise", [1e-2, 1e-4])
def test_a_matrix_that_is_not_symmetric_tells_the_noise_of_its_products(noise: float) -> None:
    torch.manual_seed(0)
    matrix = BlockMatrix(50, torch.float32, CPU)
    exact = DENSE["later"].float()
    while matrix.left:
        product = matrix.vectors() @ exact
        error = torch.randn_like(product)
        matrix.take(product + noise * error / error.norm(dim=1, keepdim=True) * product.norm(dim=1, keepdim=True))
    values, found = matrix.eigenvalues("later")
    assert found == pytest.approx(noise, rel=0.2)
    assert torch.allclose(values, torch.linspace(-1, 3, 50).double(), atol=5 * noise)


def test_a_column_that_is_not_finite_is_refused() -> None:
    matrix = BlockMatrix(3, torch.float32, CPU)
    matrix.take(matrix.vectors() * torch.nan)
    with pytest.raises(NotFiniteError, match="of block 'x' is not finite with a unit vector"):
        matrix.eigenvalues("x")
