"""The numbers of a SpectrumLogger, and what it does where it cannot measure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import LOSS, OPTIONS, PROBE, network, stepped

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, NonDeterministicError, NotFiniteError
from hvp_engine.integrations import SpectrumLogger, measurement

EXACT: dict[str, Any] = {"every": 1, "tolerance": 0.02}  # small blocks are then multiplied out


def matrix(model: nn.Module, blocks: Any = None) -> Tensor:
    (found,) = he.dense(model, LOSS, blocks, data=PROBE, precision="fp64").values()
    return found


def test_the_numbers_are_those_of_the_matrix() -> None:
    model = network().eval()
    optimizer = stepped(model)
    found = SpectrumLogger(model, LOSS, PROBE, **EXACT).step(1, optimizer)
    exact = torch.linalg.eigvalsh(matrix(model))
    assert found is not None
    for name, value in {
        "largest": exact[-1],
        "largest_2": exact[-2],
        "largest_3": exact[-3],
        "smallest": exact[0],
        "trace": exact.sum(),
        "two_over_lr": 2 / 0.1,
        "preconditioned_edge": (2 + 2 * 0.8) / (0.2 * 0.1),
    }.items():
        assert found[f"hessian/{name}"] == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
    divisors = [
        (optimizer.state[p]["exp_avg_sq"].double() / (1 - 0.99)).sqrt() + 1e-8
        for p in model.parameters()
        if p.requires_grad
    ]
    scale = torch.cat([d.flatten() for d in divisors]).rsqrt()
    largest = torch.linalg.eigvalsh(scale[:, None] * matrix(model).double() * scale)[-1]
    assert found["hessian/preconditioned_largest"] == pytest.approx(float(largest), rel=5e-3)


def test_blocks_have_numbers_of_their_own_and_distances_without_the_whole() -> None:
    model = network().eval()
    blocks = ["0.weight", "0.bias", "5.weight"]
    found = SpectrumLogger(model, LOSS, PROBE, blocks=blocks, **EXACT).step(0)
    alone = he.slq(model, LOSS, blocks, data=PROBE, tolerance=0.02, progress=False)
    assert found is not None
    assert found["hessian/js0"] == pytest.approx(alone.js0_estimate().value, rel=1e-6)
    for name, estimate in alone.mean_js_estimates().items():
        assert found[f"hessian_blocks/js/{name}"] == pytest.approx(estimate.value, rel=1e-6)
        exact = torch.linalg.eigvalsh(matrix(model, [name]))
        assert found[f"hessian_blocks/largest/{name}"] == pytest.approx(float(exact[-1]), rel=1e-3)
        assert found[f"hessian_blocks/trace/{name}"] == pytest.approx(float(exact.sum()), rel=1e-3)
    assert "hessian_blocks/trace/full" not in found


def test_an_optimiser_of_another_kind_gives_its_rate_alone() -> None:
    model = network()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[5].parameters()}], 0.4)
    found = SpectrumLogger(model, LOSS, PROBE, **OPTIONS).step(0, optimizer)
    assert found is not None
    assert found["hessian/two_over_lr"] == 2 / 0.4  # the largest rate gives the lowest edge
    assert not [name for name in found if "preconditioned" in name]
    assert "hessian/two_over_lr" not in SpectrumLogger(model, LOSS, PROBE, **OPTIONS)(0)  # type: ignore[operator]


def test_an_adam_without_a_step_has_no_divisor_yet() -> None:
    model = network()
    found = SpectrumLogger(model, LOSS, PROBE, **OPTIONS).step(0, torch.optim.Adam(model.parameters()))
    assert found is not None
    assert "hessian/preconditioned_largest" not in found


def test_the_same_network_gives_the_same_numbers_at_every_step() -> None:
    logger = SpectrumLogger(network(), LOSS, PROBE, every=1, steps=6, blocks="parameter", check=False)
    first, second = logger.step(0), logger.step(1)
    assert first is not None and second is not None
    timed = ("hessian/seconds", "hessian/share_of_time")
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
    assert list(logger.history) == [0, 1]


def test_a_smaller_step_begins_another_training() -> None:
    logger = SpectrumLogger(network(), LOSS, PROBE, every=[0, 3], steps=4)
    assert [step for step in (0, 0, 1, 3, 3, 0) if logger.step(step) is not None] == [0, 3, 0]


def test_names_suit_every_logger() -> None:
    blocks = [he.Block("q[0:3] (left)", [("0.weight", slice(0, 3))]), he.Block("rest", [("5.weight", None)])]
    found = SpectrumLogger(network(), LOSS, PROBE, blocks=blocks, **OPTIONS).step(0)
    assert found is not None
    assert "hessian_blocks/trace/q_0_3_ _left_" in found
    leaves = set(found)
    assert not [name for name in found if {name[:i] for i, c in enumerate(name) if c == "/"} & leaves]


def test_blocks_that_would_have_the_same_name_in_a_logger_are_told_apart() -> None:
    blocks = {"注意": ["0.weight"], "前馈": ["0.bias"], "_2_": ["5.weight"], "(2)": ["5.bias"]}
    found = SpectrumLogger(network(), LOSS, PROBE, blocks=blocks, **OPTIONS).step(0)
    assert found is not None
    names = [name.rpartition("/")[2] for name in found if name.startswith("hessian_blocks/trace/")]
    assert names == ["__", "___2", "_2_", "_2__2"]


def test_a_block_named_full_is_the_callers() -> None:
    logger = SpectrumLogger(network(), LOSS, PROBE, blocks={"head": ["5.*"], "full": ["0.*", "5.*"]}, **OPTIONS)
    assert logger.step(0) is not None
    assert logger.spectra is not None
    assert logger.spectra["full"].numel == 6 * 8 + 8 + 8 * 3 + 3


def test_dropout_is_off_unless_the_modes_are_left(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    assert SpectrumLogger(model, LOSS, PROBE, **OPTIONS).step(0) is not None
    with pytest.raises(NonDeterministicError, match="dropout"):
        SpectrumLogger(model, LOSS, PROBE, mode="as it is", **OPTIONS).step(0)


def test_a_step_beyond_the_budget_is_skipped_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    logger = SpectrumLogger(network(), LOSS, PROBE, every=1, steps=4, budget=1e-9)
    with caplog.at_level(logging.WARNING):
        assert [logger.step(step) is not None for step in range(3)] == [True, False, False]
    assert logger.skipped == [1, 2]
    assert "Step 2 is not measured" in caplog.messages[-1]


def test_a_first_failure_is_raised_and_a_later_one_told(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    logger = SpectrumLogger(model, LOSS, PROBE, every=1, steps=4)
    assert logger.step(0) is not None
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert logger.step(1) is None
    assert "Step 1 was not measured: The loss is not finite" in caplog.messages[-1]
    assert list(logger.history) == [0]
    with pytest.raises(NotFiniteError):
        SpectrumLogger(model, LOSS, PROBE, every=1, steps=4).step(1)


def test_only_the_first_process_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    logger = SpectrumLogger(network(), LOSS, PROBE, **OPTIONS)
    assert logger.step(0) is None
    assert not logger.history


def test_options_go_to_slq_and_others_are_refused_at_once() -> None:
    logger = SpectrumLogger(network(), LOSS, PROBE, every=1, steps=5, probes=2, seed=3, precision="fp64")
    logger.step(0)
    assert logger.spectra is not None
    assert {k: logger.spectra.settings[k] for k in ("steps", "probes", "seed", "precision")} == {
        "steps": 5,
        "probes": 2,
        "seed": 3,
        "precision": "fp64",
    }
    for options in ({"stepz": 5}, {"precondition": None}, {"progress": True}, {"first_probe": 2}):
        with pytest.raises(ConfigurationError, match="no option here"):
            SpectrumLogger(network(), LOSS, PROBE, every=1, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="mode="):
        SpectrumLogger(network(), LOSS, PROBE, every=1, mode="train")  # type: ignore[arg-type]


def test_a_logger_without_a_model_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no model yet"):
        SpectrumLogger(None, LOSS, PROBE, **OPTIONS).step(0)


def test_a_preconditioned_eigenvalue_that_did_not_converge_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_MOST_PRODUCTS", 3)
    model = network()
    found = SpectrumLogger(model, LOSS, PROBE, **OPTIONS).step(2, stepped(model))
    assert found is not None and "hessian/preconditioned_largest" not in found
    assert "hessian/preconditioned_edge" in found
