"""Adaptive jobs from end to end: what they find and take, and that an interrupted one finds and takes the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_jobs import NAMES, Counts, case, job, rule, same
from problems import dense_hessian
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.jobs import adaptive_slq
from hvp_engine.krylov import stopping
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.stopping import Ceilings
from hvp_engine.krylov.wave import Wave
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.scheduling import policy, rounds


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Steps and probes that blocks are made to need; only the bias is multiplied out."""
    wanted = {"0.weight": (10, 3), "2.weight": (20, 1), "4.weight": (15, 2)}
    monkeypatch.setattr(stopping, "judge", rule(wanted))
    monkeypatch.setattr(rounds, "is_exact", lambda numel, settings: numel == 20)
    monkeypatch.setattr(adaptive_slq, "is_better_exactly", lambda *_: False)
    return wanted


def test_blocks_get_the_steps_and_probes_that_the_rule_asks_for(
    monkeypatch: pytest.MonkeyPatch, needs: dict[str, tuple[int, int]]
) -> None:
    counts = Counts(monkeypatch)
    found = job()
    for block, (steps, probes) in needs.items():
        spectrum = found[block]
        assert spectrum.steps.tolist() == [steps] * probes
        assert spectrum.singles.shape == (4, 3) and spectrum.deflated == steps - 1
        account = found.manifest["adaptive"]["blocks"][block]
        assert account["products"] == counts.of(block) == steps * probes + 4
        assert account["ceiling"] == 10 * min(100, spectrum.numel) == account["products"] + account["saved"]
        assert account["products_by_kind"] == {"streams": steps * probes, "singles": 4, "exact": 0}
        assert account["stopped_by"] == "tolerance" and account["not_reached"] == []
    exact = found.manifest["adaptive"]["blocks"]["0.bias"]
    assert (exact["stopped_by"], exact["products"], counts.of("0.bias")) == ("exact", 20, 20)
    # One sweep per step, the single products beside the other blocks; then all further streams in one wave.
    assert len(counts.sweeps) == 20 + 1 + 15
    assert counts.sweeps[10] == {"0.weight": 4, "2.weight": 1, "4.weight": 1}
    assert counts.sweeps[21] == {"0.weight": 2, "4.weight": 1}


def test_streams_are_those_of_a_fixed_job(needs: dict[str, tuple[int, int]]) -> None:
    found, fixed = job(precision="fp64"), job(precision="fp64", tolerance=None, steps=20, probes=3)
    for block, (steps, probes) in needs.items():
        assert found[block].alphas.shape == (probes, steps)
        np.testing.assert_allclose(found[block].alphas, fixed[block].alphas[:probes, :steps], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            found[block].residuals, fixed[block].coefficients.truncated(steps).residuals[:probes], rtol=1e-6
        )
    assert "adaptive" not in fixed.manifest and "tolerance" not in fixed.manifest["config"]
    assert found.manifest["config"]["tolerance"] == {"w1": 0.3}


def test_small_blocks_are_what_the_dense_matrix_says() -> None:
    found = job(precision="fp64", tolerance=0.02)
    for block in ("0.bias", "4.weight"):
        assert found[block].steps.tolist() == [found[block].numel]
        exact = torch.linalg.eigvalsh(dense_hessian(case(), [block])).numpy()
        np.testing.assert_allclose(found[block].nodes[0], exact, atol=1e-12)
        for power in (1, 2, 3):
            assert found[block].moment(power).value == pytest.approx((exact**power).mean(), rel=1e-9, abs=1e-12)
        assert found[block].noise < 1e-12
        assert found.manifest["adaptive"]["blocks"][block]["stopped_by"] == "exact"


def test_single_products_belong_to_the_first_stream(needs: dict[str, tuple[int, int]]) -> None:
    found = job(precision="fp64")
    for block in needs:
        spectrum, dense = found[block], dense_hessian(case(), [block]).numpy()
        start = probe(0, block, 0, spectrum.numel, "gaussian", torch.float64).numpy()
        basis = np.column_stack([start, *_krylov(dense, start, spectrum.deflated)])
        for index, (rayleigh, square, leak) in enumerate(spectrum.singles):
            g = probe(0, block, -1 - index, spectrum.numel, "gaussian", torch.float64).numpy()
            q = basis[:, : spectrum.deflated]
            h = g - q @ (q.T @ g)
            length, product = h @ h, dense @ h
            assert rayleigh == pytest.approx(h @ product / length, rel=1e-5, abs=1e-9)
            assert square == pytest.approx(product @ product / length, rel=1e-5, abs=1e-12)
            assert leak == pytest.approx((basis[:, spectrum.deflated] @ h) ** 2 / length, rel=1e-4, abs=1e-9)


def _krylov(dense: Any, start: Any, count: int) -> Iterator[Any]:
    """Yield an orthogonal basis of the Krylov space, vector by vector."""
    vectors = [start]
    for _ in range(count):
        new = dense @ vectors[-1]
        for _ in range(2):
            for vector in vectors:
                new = new - (vector @ new) * vector
        vectors.append(new / np.linalg.norm(new))
        yield vectors[-1]


@pytest.mark.parametrize(
    "options",
    [{}, {"basis": "bf16"}, {"reorthogonalize": "none"}, {"memory": 330_000}],
    ids=["plain", "bf16", "none", "waves"],
)
def test_a_job_that_is_interrupted_at_every_step_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: dict[str, tuple[int, int]], options: dict[str, Any]
) -> None:
    wanted = job(**options)
    original, taken = Wave.step, 0

    def step(wave: Wave) -> int:
        nonlocal taken
        if taken:
            raise KeyboardInterrupt
        taken += 1
        return original(wave)

    monkeypatch.setattr(Wave, "step", step)
    counts = Counts(monkeypatch)
    for _ in range(150):
        taken = 0
        try:
            found = job(tmp_path, **options)
        except KeyboardInterrupt:
            continue
        break
    same(found, wanted)
    assert found.manifest["plan"]["waves"] == wanted.manifest["plan"]["waves"]
    assert (wanted.manifest["plan"]["waves"] > 2) == ("memory" in options)
    for block in NAMES:  # no product was taken twice
        assert counts.of(block) == found.manifest["adaptive"]["blocks"][block]["products"]
    same(job(tmp_path, **options), wanted)  # what is complete is returned


def test_the_waves_of_every_round_are_kept_when_the_memory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: dict[str, tuple[int, int]]
) -> None:
    wanted = job()
    original = Wave.step
    for stop, memory in ((5, 330_000), (36, 330_000), (None, None)):
        count = 0

        def step(wave: Wave, stop: int | None = stop) -> int:
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return original(wave)

        monkeypatch.setattr(Wave, "step", step)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                job(tmp_path, memory=memory)
            waves = json.loads((tmp_path / "hvp_engine-checkpoint" / "waves.json").read_text())["waves"]
    found = job(tmp_path)
    same(found, wanted)
    assert found.manifest["plan"]["waves"] == len(waves) > 2


def test_a_resumed_job_judges_by_the_noise_that_its_first_run_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: dict[str, tuple[int, int]]
) -> None:
    def stopped(wave: Wave) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Wave, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            job(tmp_path, check=True)
    unchecked = job(check=False)["2.weight"].noise
    found = job(tmp_path, check=False)["2.weight"].noise
    assert found == job(check=True)["2.weight"].noise != unchecked


def test_a_block_that_leaves_takes_its_share_of_the_graphs_along(
    monkeypatch: pytest.MonkeyPatch, needs: dict[str, tuple[int, int]]
) -> None:
    wanted = job()
    monkeypatch.setattr(policy, "GRAPH_SHARE", 0.0)
    graphs: list[frozenset[str]] = []
    original = GradientGraph.__init__

    def counted(graph: GradientGraph, *arguments: Any, **options: Any) -> None:
        original(graph, *arguments, **options)
        graphs.append(frozenset(name for name, gradient in graph.gradients.items() if gradient is not None))

    monkeypatch.setattr(GradientGraph, "__init__", counted)
    counts = Counts(monkeypatch)
    same(job(), wanted)
    served = [frozenset(sweep) for sweep in counts.sweeps for _ in range(2)]  # two batches
    assert graphs[-len(served) :] == served
    assert len(set(served)) > 4


def test_ceilings_are_kept_and_what_was_not_reached_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hvp_engine"):
        found = job(tolerance=1e-6, steps=12, probes=2)
    for block in ("0.weight", "2.weight"):
        account = found.manifest["adaptive"]["blocks"][block]
        assert found[block].steps.max() <= 12 and found[block].probes <= 2
        assert account["not_reached"] == ["w1"] and account["errors"]["w1"] > 1e-6
        assert account["stopped_by"] in ("ceiling of steps", "ceiling of probes")
        assert account["products"] <= 2 * 12 + 12
    message = "The tolerance was not reached: w1 1e-06 in "
    assert any(message in record.getMessage() and "0.weight" in record.getMessage() for record in caplog.records)
    assert any(message in note for note in found.manifest["notes"])


def test_neither_steps_nor_probes_means_a_tolerance_of_two_per_cent() -> None:
    found = job(tolerance=None)
    assert found.manifest["adaptive"]["targets"] == {"w1": 0.02}
    assert found.manifest["config"]["tolerance"] == {"w1": 0.02}
    with_name = job(tolerance={"w1": 0.02})
    same(with_name, found)


def test_blocks_whose_streams_would_cost_more_than_their_matrix_are_multiplied_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "judge", rule({"0.weight": (10, 60), "2.weight": (10, 2), "4.weight": (10, 1)}))
    monkeypatch.setattr(rounds, "is_exact", lambda numel, settings: numel == 20)
    found = job(precision="fp64")
    exact = torch.linalg.eigvalsh(dense_hessian(case(), ["0.weight"])).numpy()
    np.testing.assert_allclose(found["0.weight"].nodes[0], exact, atol=1e-12)
    account = found.manifest["adaptive"]["blocks"]["0.weight"]
    assert account["products_by_kind"] == {"streams": 10, "singles": 4, "exact": 320}
    assert (account["stopped_by"], account["not_reached"]) == ("exact", [])
    assert found["2.weight"].steps.tolist() == [10, 10]


def test_blocks_are_judged_beside_all_of_which_something_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[str], set[str], Ceilings]] = []
    plain = rule(dict.fromkeys(NAMES, (10, 1)))

    def judge(
        blocks: Mapping[str, Any], *arguments: Any, asked: Collection[str], ceilings: Ceilings, **more: Any
    ) -> Any:
        seen.append((set(asked), set(blocks), ceilings))
        return plain(blocks, *arguments, asked=asked, ceilings=ceilings, **more)

    monkeypatch.setattr(stopping, "judge", judge)
    monkeypatch.setattr(rounds, "is_exact", lambda numel, settings: numel == 20)
    found = job(memory=330_000, probes=7)
    assert found.manifest["plan"]["waves"] == 2
    assert seen[0][:2] == ({"0.weight"}, {"0.weight", "0.bias"})
    assert ({"2.weight", "4.weight"}, set(NAMES)) in [asked[:2] for asked in seen]
    assert {ceilings for _, _, ceilings in seen} == {Ceilings(7, 100)}


@pytest.mark.parametrize(
    ("blocks", "memory", "waves"),
    [(["0.weight", "2.weight"], 1_700_000, 2), (["0.weight", "4.weight"], None, 1)],
    ids=["in waves", "beside a matrix"],
)
def test_divergences_are_reached_from_blocks_of_which_nothing_is_known_at_the_first_checks(
    monkeypatch: pytest.MonkeyPatch, blocks: list[str], memory: int | None, waves: int
) -> None:
    monkeypatch.setattr(rounds, "is_exact", lambda numel, settings: numel == 150)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 3))
    data = [(torch.randn(n, 40), torch.randint(0, 3, (n,))) for n in (9, 7)]
    options: dict[str, Any] = {"tolerance": {"js": 0.05}, "check": False, "head_curvature": False, "memory": memory}
    found = he.slq(model, he.losses.classification, blocks, data=data, **options)
    assert found.manifest["plan"]["waves"] == waves
    assert all(account["not_reached"] == [] for account in found.manifest["adaptive"]["blocks"].values())
    assert found["0.weight"].steps.max() < 100


def test_a_block_without_curvature_is_named_and_costs_next_to_nothing() -> None:
    given = case()
    given.model.append(nn.Linear(30, 20))  # no loss depends on more than its output's sum

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        flat = model[5](torch.ones(30)).sum()
        return nn.functional.cross_entropy(model[:5](batch[0]), batch[1]) + flat + 1e-20 * flat**2

    found = he.slq(given.model, loss, ["0.weight", "5.weight"], data=given.data, tolerance=0.3, check=False)
    account = found.manifest["adaptive"]["blocks"]["5.weight"]
    assert (account["stopped_by"], account["not_reached"]) == ("zero", [])
    assert account["products"] <= 10 and len(found["5.weight"].singles) == 0
    assert found.manifest["adaptive"]["blocks"]["0.weight"]["stopped_by"] != "zero"


def options() -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(5)
    for _ in range(12):
        tolerance = random.choice([0.02, 0.3, 0.9])
        yield {
            "tolerance": {str(random.choice(["w1", "js", "trace", "density"])): float(tolerance)},
            "steps": int(random.choice([1, 2, 9, 11, 30])),
            "probes": int(random.choice([1, 2, 5])),
            "seed": int(random.integers(5)),
            "distribution": str(random.choice(["gaussian", "rademacher"])),
            "precision": str(random.choice(["fp32", "fp64", "bf16"])),
            "reorthogonalize": str(random.choice(["full", "none"])),
            "basis": str(random.choice(["fp32", "bf16"])),
            "microbatch": random.choice([None, 3]),
            "memory": random.choice([None, 700_000]),
        }


@pytest.mark.parametrize("chosen", list(options()), ids=lambda chosen: " ".join(map(str, chosen.values())))
def test_any_options_give_finite_spectra_within_their_ceilings(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any]
) -> None:
    counts = Counts(monkeypatch)
    found = job(**chosen)
    blocks = found.manifest["adaptive"]["blocks"]
    json.dumps(found.manifest)
    for name, spectrum in found.items():
        account = blocks[name]
        assert account["products"] == counts.of(name)
        if account["stopped_by"] == "exact":
            assert spectrum.steps.tolist() == [spectrum.numel]
        else:
            assert spectrum.steps.max() <= chosen["steps"] and spectrum.probes <= chosen["probes"]
        assert np.isfinite(spectrum.nodes).all() and np.isfinite(spectrum.singles).all()
        assert isinstance(account["not_reached"], list)


def test_divergences_of_one_block_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = Counts(monkeypatch)
    small = case()
    model, loss, data = small.model, small.loss, small.data
    with pytest.raises(ConfigurationError, match="between blocks, and the job has one"):
        he.slq(model, loss, data=data, tolerance={"js": 0.05}, progress=False, out=tmp_path)
    with pytest.raises(ConfigurationError, match="between blocks, and the job has one"):
        he.plan(model, loss, data=data, device="cpu", tolerance={"js": 0.05})
    assert not counts.sweeps
