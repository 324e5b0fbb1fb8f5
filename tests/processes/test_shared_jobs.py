"""Jobs of several processes: the numbers of one process to rounding, the same bits every time, and a clean end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import Launcher, Rank
from team_jobs import Numbers, job, with_bars

from hvp_engine.results.spectra import Spectra

TWO_WAYS = [(2, {"data": 2}), (2, {"probes": 2}), (4, {"probes": 2, "data": 2})]


def same_bits(first: Numbers, second: Numbers) -> bool:
    return all(
        first[name][key].tobytes() == second[name][key].tobytes() for name in (first | second) for key in first[name]
    )


def difference(first: Numbers, second: Numbers) -> float:
    """Return the largest difference of coefficients, relative to the largest of their block."""
    assert first.keys() == second.keys()
    return max(
        float(np.abs(first[name][key] - second[name][key]).max()) / float(np.abs(first[name]["alphas"]).max())
        for name in first
        for key in ("alphas", "betas")
    )


@pytest.mark.parametrize(("world", "axes"), TWO_WAYS)
@pytest.mark.parametrize("case", ["mlp", "cnn", "gpt"])
def test_the_numbers_are_those_of_one_process(launcher: Launcher, case: str, world: int, axes: dict[str, int]) -> None:
    found = launcher.values(world, "team_jobs:job", case=case, distributed=axes)
    alone = job(case, None)
    assert difference(alone["numbers"], found[0]["numbers"]) < 1e-10
    assert all(same_bits(found[0]["numbers"], other["numbers"]) for other in found)
    assert found[0]["manifest"]["plan"]["processes"] == {"probes": 1, "data": 1, **axes}
    assert "processes" not in alone["manifest"]["plan"]


def test_the_same_processes_give_the_same_bits(launcher: Launcher) -> None:
    first, second = launcher.values(2, "team_jobs:two_jobs", case="gpt", distributed={"data": 2})[1]
    third = launcher.values(2, "team_jobs:job", case="gpt", distributed={"data": 2})[0]["numbers"]
    assert same_bits(first, second) and same_bits(first, third)


@pytest.mark.parametrize("options", [{"microbatch": 1, "memory": 400_000}, {"precision": "fp32", "check": True}])
def test_small_pieces_waves_and_checks_give_the_same(launcher: Launcher, options: dict[str, Any]) -> None:
    found = launcher.values(2, "team_jobs:job", case="gpt", distributed={"data": 2}, **options)
    alone = job("gpt", None, **options)
    assert difference(alone["numbers"], found[0]["numbers"]) < (1e-10 if "memory" in options else 1e-3)


@pytest.mark.parametrize("axes", [{"data": 2}, {"probes": 2}])
def test_a_job_to_a_tolerance_finds_the_same(launcher: Launcher, axes: dict[str, int]) -> None:
    options = {"steps": 12, "probes": 4, "tolerance": 0.2}
    found = launcher.values(2, "team_jobs:job", case="mlp", distributed=axes, **options)
    alone = job("mlp", None, **options)
    assert same_bits(found[0]["numbers"], found[1]["numbers"])
    for name, expected in alone["numbers"].items():
        assert found[0]["numbers"][name]["steps"].tolist() == expected["steps"].tolist()
        np.testing.assert_allclose(found[0]["numbers"][name]["nodes"], expected["nodes"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(("world", "axes"), [(2, {"data": 2}), (2, {"probes": 2})])
def test_the_curvature_of_the_head_is_shared_with_the_data(
    launcher: Launcher, tmp_path: Path, world: int, axes: dict[str, int], place: str
) -> None:
    options = {"case": "gpt", "distributed": axes, "place": place, "every": 0.0, "out": str(tmp_path / "run")}
    found = launcher.values(world, "team_jobs:with_head", **options)
    alone = job("gpt", None, blocks=["wte.weight", "ln_f.weight"])
    assert difference(alone["numbers"], found[0]["numbers"]) < 1e-9
    assert found[0]["manifest"]["plan"]["head_curvature"].startswith("float64")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "spectra.safetensors"]


@pytest.mark.parametrize("axes", [{"data": 2}, {"probes": 2}])
def test_bars_for_the_choice_of_data_are_those_of_one_process(launcher: Launcher, axes: dict[str, int]) -> None:
    found = launcher.values(2, "team_jobs:with_bars", case="mlp", distributed=axes)
    alone = with_bars("mlp", None)
    assert difference(alone["numbers"], found[0]["numbers"]) < 1e-10
    assert found[0]["bars"] == found[1]["bars"]
    for name, pair in alone["bars"].items():
        assert found[0]["bars"][name] == pytest.approx(pair, rel=1e-6)


def test_a_model_in_ddp_is_taken_out_of_it(launcher: Launcher) -> None:
    found = launcher.values(2, "team_jobs:wrapped", case="gpt")
    assert difference(job("gpt", None)["numbers"], found[0]) < 1e-10


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("other_weights", "have other parameters each. Give every process the same weights"),
        ("other_data", "have other data each. Every process needs all of the data"),
        ("other_settings", "have other seed each. Call every process with the same arguments"),
    ],
)
def test_processes_of_different_jobs_are_refused(launcher: Launcher, function: str, message: str) -> None:
    for rank in launcher.run(2, f"team_jobs:{function}", case="mlp"):
        assert rank.error == "ConfigurationError", rank
        assert message in rank.message


@pytest.mark.parametrize("only_first", [True, False])
def test_processes_with_other_run_folders_are_refused_at_once(
    launcher: Launcher, tmp_path: Path, only_first: bool
) -> None:
    options = {"case": "mlp", "out": str(tmp_path / "run"), "only_first": only_first}
    for rank in launcher.run(2, "team_jobs:other_folders", **options):
        assert rank.error == "ConfigurationError", rank
        assert "Ranks 0 and 1 have other out= each; give every process the same folder" in rank.message
    assert not list(tmp_path.iterdir())


def test_an_arrangement_for_other_numbers_is_refused(launcher: Launcher) -> None:
    for rank in launcher.run(2, "team_jobs:job", case="mlp", distributed={"probes": 3, "data": 2}):
        assert "takes 6 processes, and there are 2" in rank.message


@pytest.mark.parametrize("axes", [{"data": 2}, {"probes": 2}])
def test_a_killed_process_ends_the_job_and_the_same_call_resumes_it(
    launcher: Launcher, tmp_path: Path, axes: dict[str, int]
) -> None:
    wanted = launcher.values(2, "team_jobs:job", case="gpt", distributed=axes)[0]
    options = {"case": "gpt", "distributed": axes, "out": str(tmp_path / "run"), "every": 0.0}
    survivor, lost = launcher.run(2, "team_jobs:killed", who=1, at=3, **options)
    assert lost.status == -9
    assert (survivor.error, survivor.status) == ("ProcessError", 1), survivor
    assert "Rank 1 of 2 ended without a word" in survivor.message
    assert not Path(tmp_path / "run" / "manifest.json").exists()
    found = launcher.values(2, "team_jobs:job", **options)
    assert same_bits(found[0]["numbers"], wanted["numbers"])
    assert found[0]["steps"] < wanted["steps"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "spectra.safetensors"]


@pytest.mark.parametrize(("then", "axes"), [(4, {"probes": 2, "data": 2}), (1, None), (3, "auto")])
def test_another_number_of_processes_goes_on_to_rounding(
    launcher: Launcher, tmp_path: Path, then: int, axes: dict[str, int] | str | None
) -> None:
    options = {"case": "gpt", "out": str(tmp_path / "run"), "every": 0.0}
    launcher.run(2, "team_jobs:killed", who=0, at=3, distributed={"probes": 2}, **options)
    found = launcher.values(then, "team_jobs:job", distributed=axes, **options)[0]
    assert difference(job("gpt", None)["numbers"], found["numbers"]) < 1e-10
    sittings = found["manifest"]["sittings"]
    assert sittings[0]["processes"] == {"probes": 2, "data": 1}
    assert sittings[-1]["processes"] != sittings[0]["processes"]


def test_a_finished_run_is_everybodys(launcher: Launcher, tmp_path: Path) -> None:
    options = {"case": "mlp", "distributed": "auto", "out": str(tmp_path / "run")}
    first = launcher.values(2, "team_jobs:job", **options)
    again = launcher.values(2, "team_jobs:job", **options)
    assert all(same_bits(first[0]["numbers"], other["numbers"]) for other in again)
    assert [other["steps"] for other in again] == [0, 0]
    assert Spectra.load(tmp_path / "run").manifest["plan"]["processes"] is not None


def test_a_failure_in_one_process_is_told_by_the_others(launcher: Launcher) -> None:
    told, failed = launcher.run(2, "team_jobs:failing", case="mlp", distributed={"data": 2}, who=1)
    assert failed.error == "ObjectiveError" and "the loss had enough" in failed.message
    assert told.error == "ProcessError", told
    assert told.message.startswith("Rank 1 of 2 (process ") and "the loss had enough" in told.message


def test_a_folder_that_another_job_holds_is_refused_in_every_process(launcher: Launcher, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    launcher.values(2, "team_jobs:job", case="mlp", distributed="auto", out=run)
    ranks: list[Rank] = launcher.run(2, "team_jobs:job", case="gpt", distributed="auto", out=run)
    assert [rank.error for rank in ranks] == ["ForeignRunError", "ForeignRunError"]
    assert all("holds another job" in rank.message for rank in ranks)
