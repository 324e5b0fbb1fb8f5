"""Runs of some probes each, joined: the run of all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from problems import Case, gpt, mlp
from torch import nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.jobs.folder import FOLDER
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.results.spectra import Spectra
from hvp_engine.scheduling import policy

ARRAYS = ("alphas", "betas", "nodes", "weights", "steps", "residuals", "singles")


@pytest.fixture(autouse=True)
def one_vector_per_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply one vector at a time: the last bit of a matrix product depends on how many go through it at once."""
    monkeypatch.setattr(policy, "choose_streams_per_pass", lambda *_, **__: 1)


def part(case: Case, first: int, probes: int, **further: object) -> Spectra:
    # Fewer products than are compiled, of the parts and of the whole.
    settings = {"steps": 5, "precision": "fp64", "check": False, "progress": False, "blocks": "parameter", **further}
    blocks = settings.pop("blocks")
    return he.slq(case.model, case.loss, blocks, data=case.data, first_probe=first, probes=probes, **settings)


def same_numbers(one: Spectra, other: Spectra) -> bool:
    return list(one) == list(other) and all(
        getattr(one[name], key).tobytes() == getattr(other[name], key).tobytes() for name in one for key in ARRAYS
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Probes 0 and 1, 2 to 4, 5 of one job."""
    case, folders = mlp(), [tmp_path / name for name in ("a", "b", "c")]
    for folder, (first, probes) in zip(folders, ((0, 2), (2, 3), (5, 1)), strict=True):
        part(case, first, probes, out=folder)
    return folders


@pytest.mark.parametrize("case", [mlp, gpt], ids=["mlp", "gpt"])
def test_a_job_of_later_probes_has_the_bits_of_the_whole_job(case: Callable[[], Case]) -> None:
    problem = case()
    whole, later = part(problem, 0, 5), part(problem, 3, 2)
    for name, spectrum in later.items():
        for key in ARRAYS[:-1]:
            assert getattr(spectrum, key).tobytes() == getattr(whole[name], key)[3:].tobytes(), (name, key)
        assert spectrum.alphas.tobytes() != whole[name].alphas[:2].tobytes()


def test_products_with_several_vectors_at_once_agree_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = gpt()
    whole, later = part(case, 0, 4), part(case, 3, 1)
    for name, spectrum in later.items():
        assert np.allclose(spectrum.alphas, whole[name].alphas[3:], rtol=0.0, atol=1e-9 * np.abs(spectrum.nodes).max())


def test_merged_runs_are_the_one_run_of_all_probes(runs: list[Path], tmp_path: Path) -> None:
    case, out = mlp(), tmp_path / "all"
    whole = part(case, 0, 6, out=tmp_path / "whole")
    merged = he.merge([runs[2], runs[0], str(runs[1])], out)
    assert same_numbers(merged, whole)
    assert merged.manifest["config"] == whole.manifest["config"]
    assert merged.summarize().record() == whole.summarize().record()
    stored, one = (json.loads((folder / "manifest.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert stored["estimates"] == one["estimates"] and stored["sha256"] == one["sha256"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "spectra.safetensors"]
    again = part(case, 0, 6, out=out)  # the job itself finds it complete
    assert same_numbers(again, whole) and again.manifest == merged.manifest


def test_the_manifest_says_what_each_run_took(runs: list[Path], tmp_path: Path) -> None:
    facts = [Spectra.load(run).manifest for run in runs]
    merged = he.merge(runs[:2], tmp_path / "two").manifest
    assert [(each["first_probe"], each["probes"]) for each in merged["merged"]] == [(0, 2), (2, 3)]
    assert merged["merged"][1]["origin"] == facts[1]["origin"]
    assert merged["seconds"] == pytest.approx(facts[0]["seconds"] + facts[1]["seconds"], abs=2e-3)
    assert merged["sittings"] == facts[0]["sittings"] + facts[1]["sittings"]
    assert merged["plan"]["waves"] == facts[0]["plan"]["waves"] + facts[1]["plan"]["waves"]
    every = he.merge([runs[2], tmp_path / "two"])
    assert [each["first_probe"] for each in every.manifest["merged"]] == [0, 2, 5]
    later = he.merge(runs[1:]).manifest["config"]
    assert (later["first_probe"], later["probes"]) == (2, 4)


def test_results_without_folders_are_merged_too(runs: list[Path]) -> None:
    case = mlp()
    loose = part(case, 0, 2)
    assert same_numbers(he.merge([loose, runs[1]]), he.merge(runs[:2]))


def test_notes_on_ghosts_are_those_of_all_probes(tmp_path: Path) -> None:
    case = mlp()
    settings = {"steps": 25, "reorthogonalize": "none", "precision": "fp32", "blocks": ["0.weight"]}
    whole = part(case, 0, 4, **settings)
    merged = he.merge([part(case, 0, 2, **settings), part(case, 2, 2, **settings)])
    assert merged.manifest["ghosts"] == whole.manifest["ghosts"] and whole.manifest["ghosts"]["0.weight"]["from_step"]
    assert merged.manifest["notes"] == whole.manifest["notes"]


def test_bars_for_the_choice_of_data_stay(tmp_path: Path) -> None:
    case = mlp()
    whole = part(case, 0, 3, data_error=True)
    pieces = [part(case, 0, 2, data_error=True, out=tmp_path / "a"), part(case, 2, 1, out=tmp_path / "b")]
    he.merge([tmp_path / "b", tmp_path / "a"], tmp_path / "all")
    merged = Spectra.load(tmp_path / "all")
    assert pieces[1].data_error is None and merged.data_error is not None and whole.data_error is not None
    assert merged.data_error.summary() == whole.data_error.summary()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, "seed: 1 there, 0 here"),
        ({"steps": 4}, "steps: 4 there, 5 here"),
        ({"operator": "ggn"}, "matrix: 'ggn' there, None here"),
        ({"blocks": ["0.weight"]}, "blocks: "),
        ({"distribution": "rademacher"}, "distribution: "),
    ],
)
def test_other_settings_are_refused(runs: list[Path], changed: dict[str, object], words: str) -> None:
    other = part(mlp(), 2, 2, **changed)
    with pytest.raises(ConfigurationError, match="are of different jobs") as error:
        he.merge([runs[0], other])
    assert words in str(error.value)


def test_other_models_and_data_are_refused(runs: list[Path]) -> None:
    case = mlp()
    case.data[1] = (case.data[1][0] + 1.0, case.data[1][1])
    with pytest.raises(ConfigurationError, match="data: batch 1 of 3 changed"):
        he.merge([runs[0], part(case, 2, 2)])
    trained = mlp()
    trained.model[0].weight.data.add_(0.01)
    with pytest.raises(ConfigurationError, match=r"parameters: 0\.weight changed"):
        he.merge([runs[0], part(trained, 2, 2)])


def test_probes_that_are_there_twice_or_missing_are_refused_with_a_way_that_works(
    runs: list[Path], tmp_path: Path
) -> None:
    case = mlp()
    part(case, 1, 3, out=tmp_path / "late")
    with pytest.raises(ConfigurationError, match=r"have the same probes \(1\).*first_probe=2\."):
        he.merge([runs[0], tmp_path / "late"])
    with pytest.raises(ConfigurationError, match=r"missing \(2 to 4\); run them with first_probe=2, probes=3"):
        he.merge([runs[2], runs[0]])
    filled = part(case, 2, 3)
    assert filled["0.bias"].alphas.tobytes() == Spectra.load(runs[1])["0.bias"].alphas.tobytes()
    with pytest.raises(ConfigurationError, match="have the same probes"):
        he.merge([runs[0], runs[0]])


def test_a_run_that_is_not_finished_is_refused(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(3))
    step = BatchedLanczos.step

    def interrupted(self: BatchedLanczos) -> int:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(BatchedLanczos, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        part(mlp(), 2, 2, out=tmp_path / "broken")
    monkeypatch.undo()
    assert (tmp_path / "broken" / FOLDER).is_dir()
    with pytest.raises(RunFolderError, match="is not finished: it runs, or was interrupted; the same call"):
        he.merge([runs[0], tmp_path / "broken"])
    before = sorted(path.name for path in (tmp_path / "broken" / FOLDER).iterdir())
    with pytest.raises(RunFolderError, match="unfinished job has"):
        he.merge(runs, tmp_path / "broken")
    assert sorted(path.name for path in (tmp_path / "broken" / FOLDER).iterdir()) == before
    part(mlp(), 2, 2, out=tmp_path / "broken")  # the same call again, as the message says
    assert he.merge([runs[0], tmp_path / "broken"])["0.bias"].probes == 4


def test_what_is_no_part_of_a_job_is_refused(runs: list[Path], tmp_path: Path) -> None:
    case = mlp()
    with pytest.raises(ConfigurationError, match="two or more"):
        he.merge([runs[0]])
    with pytest.raises(ConfigurationError, match="two or more"):
        he.merge(str(runs[0]))
    with pytest.raises(ConfigurationError, match="Run 2 is of type int; give a run folder"):
        he.merge([runs[0], 3])
    with pytest.raises(RunFolderError, match="no run folder"):
        he.merge([runs[0], tmp_path / "nowhere"])
    with pytest.raises(ConfigurationError, match="does not say which job it is of"):
        he.merge([runs[0], Spectra(Spectra.load(runs[1]).values())])
    adaptive = he.slq(case.model, case.loss, ["0.bias"], data=case.data, tolerance=0.5, check=False, progress=False)
    with pytest.raises(ConfigurationError, match="found out by its tolerance"):
        he.merge([runs[0], adaptive])
    he.eigsh(case.model, case.loss, ["0.bias"], data=case.data, k=1, check=False, out=tmp_path / "pairs")
    with pytest.raises(ConfigurationError, match="is of a job 'eigsh'; only runs of slq"):
        he.merge([runs[0], tmp_path / "pairs"])


def test_runs_may_come_one_after_another(runs: list[Path]) -> None:
    assert same_numbers(he.merge(run for run in runs), he.merge(runs))
    with pytest.raises(ConfigurationError, match="two or more"):
        he.merge(iter(()))
    with pytest.raises(ConfigurationError, match="two or more"):
        he.merge(3)  # type: ignore[arg-type]


class Smoothed:
    """The loss of a case, and a multiple of what a layer of its own says."""

    def __init__(self, case: Case, seed: int) -> None:
        self.loss, self.layer = case.loss, nn.Linear(2, 2)
        nn.init.constant_(self.layer.weight, float(seed))

    def __call__(self, model: nn.Module, batch: object) -> object:
        return self.loss(model, batch) * self.layer.weight[0, 0].detach()


@pytest.mark.parametrize("has_folders", [(False, False), (True, False), (False, True)])
def test_runs_of_losses_that_differ_in_a_held_module_are_told_apart(
    has_folders: tuple[bool, bool], tmp_path: Path
) -> None:
    found = []
    for place, has_folder in enumerate(has_folders):
        made = mlp()
        case = Case(made.model, Smoothed(made, place + 1), made.data)
        out = tmp_path / str(place) if has_folder else None
        found.append(part(case, place, 1, blocks=["0.bias"], out=out))
    with pytest.raises(ConfigurationError, match=r"of different jobs \(loss"):
        he.merge(found)
    other = part(Case(made.model, Smoothed(made, 2), made.data), 0, 1, blocks=["0.bias"])
    assert [words.partition(":")[0] for words in he.compare(found[0], other).differences] == ["loss"]


def test_no_other_result_is_written_over(runs: list[Path], tmp_path: Path) -> None:
    kept = (runs[0] / "manifest.json").read_bytes()
    with pytest.raises(RunFolderError, match="holds another job"):
        he.merge(runs, runs[0])
    assert (runs[0] / "manifest.json").read_bytes() == kept
    he.merge(runs, tmp_path / "all")
    assert same_numbers(he.merge(runs, tmp_path / "all"), Spectra.load(tmp_path / "all"))  # the same once more
    shutil.copy(runs[1] / "spectra.safetensors", runs[0])
    with pytest.raises(RunFolderError, match="spectra.safetensors is"):
        he.merge(runs)


def test_a_merged_run_has_smaller_bars(runs: list[Path]) -> None:
    merged, first = (spectra["0.weight"].trace() for spectra in (he.merge(runs), Spectra.load(runs[0])))
    assert merged.high - merged.low < first.high - first.low
