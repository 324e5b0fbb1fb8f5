"""Running a driver by name: what is refused, and what the manifest says."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvp_engine import experiments
from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.experiments import figures, registry, running, weights
from hvp_engine.experiments.data.packages import PACKAGES
from hvp_engine.experiments.registry import DRIVERS, Driver, Setting, find
from hvp_engine.experiments.result import Result, Table, at_least
from hvp_engine.system.json_files import read_json

TRIAL = Driver("trial", "T1", "Something is large.", "trial", 0.1, ("experiments",), ("steps", "bn"))


def trial(setting: Setting) -> Result:
    steps = setting.option("steps", 4)
    figure = figures.page(1, 1, 1.0, 1.0)[0]
    claim = at_least("It is large", "steps", [steps], 4, "here")
    settings = {"licence": "MIT", "data": "drawn", "weights": "of the driver's"}
    return Result(Table(("steps",), ((steps,),)), (claim,), figure, settings, {"part": 0.5})


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("hvp_engine.experiments.drivers.trial")
    module.run = trial  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "DRIVERS", (TRIAL,))
    return module


def test_the_list_has_every_name_and_every_id_once() -> None:
    names = [name for driver in DRIVERS for name in (driver.name, driver.id)]
    assert len(set(names)) == len(names) == 2 * len(DRIVERS)
    for driver in DRIVERS:
        assert driver.module == driver.name.replace("-", "_") and driver.claim.endswith(".") and driver.minutes > 0


def test_a_driver_is_found_by_name_and_id_and_a_typing_error_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DRIVERS", DRIVERS)
    assert find("quadratics") is find("D9")
    with pytest.raises(ConfigurationError, match="did you mean 'quadratics'"):
        find("quadratic")


def test_a_run_is_written_beside_what_it_depends_on(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc")
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train" / "a.png").write_text("12345")
    data = {"shakespeare": "text.txt", "imagenet": tmp_path / "images"}
    result = experiments.run("trial", out="out", seeds=2, data=data, options={"steps": 6})
    assert result.holds and result.claims[0].values == (6.0,)
    manifest = read_json(tmp_path / "out" / "manifest.json")
    settings = manifest["settings"]
    assert settings["seeds"] == [0, 1] and settings["options"] == {"steps": "6"} and settings["licence"] == "MIT"
    given = settings["given"]["data"]
    assert given["shakespeare"]["bytes"] == 3 and len(given["shakespeare"]["blake2b"]) == 32
    assert given["imagenet"]["files"] == 1 and given["imagenet"]["bytes"] == 5
    assert settings["data"] == "drawn" and settings["weights"] == "of the driver's"
    assert manifest["seconds"]["part"] == 0.5 and manifest["seconds"]["total"] > 0.0


def test_other_data_have_another_digest(tmp_path: Path) -> None:
    for text in ("abc", "abd"):
        (tmp_path / "text.txt").write_text(text)
        experiments.run("trial", out=text, data={"shakespeare": "text.txt"})
    one, two = (read_json(tmp_path / text / "manifest.json")["settings"]["given"]["data"] for text in ("abc", "abd"))
    assert one["shakespeare"]["blake2b"] != two["shakespeare"]["blake2b"]


def test_weights_of_the_users_are_described_by_their_contents(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"abc")
    experiments.run("trial", out="out", weights={"resnet-18": "model.pt"})
    settings = read_json(tmp_path / "out" / "manifest.json")["settings"]
    given = settings["given"]["weights"]["resnet-18"]
    assert given["origin"] == "model.pt" and given["licence"] == "as given by the user" and len(given["digest"]) == 32


def test_without_a_folder_results_go_to_results(tmp_path: Path) -> None:
    experiments.run("trial")
    assert (tmp_path / "results" / "trial" / "claim.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "'huge' is not one of"),
        ({"seeds": 0}, "too few"),
        ({"options": {"speed": 1}}, "no setting 'speed'; it has steps, bn"),
        ({"options": {"steps": "many"}}, "steps=many is no int"),
        ({"options": {"steps": "0"}}, "steps=0 is too few"),
        ({"options": {"bn": "RAW"}}, "bn=RAW is neither data nor raw"),
        ({"data": {"tweet": "."}}, "data of the name 'tweet'; did you mean 'tweets'"),
        ({"weights": {"minlm": "."}}, "weights of the name 'minlm'; did you mean 'minilm'"),
        ({"data": {"digits": "."}}, "data of the name 'digits'; it is one of"),
        ({"data": {"imagenet": "nowhere"}}, "nowhere is not there"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        experiments.run("trial", **arguments)  # type: ignore[arg-type]


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hvp_engine.experiments import drivers

    monkeypatch.delitem(sys.modules, "hvp_engine.experiments.drivers.trial")
    monkeypatch.setattr(drivers, "__path__", [str(tmp_path)])
    (tmp_path / "trial.py").write_text("import package_that_is_not_there.part\n")
    with pytest.raises(ConfigurationError, match=r"that_is_not_there, .*pip install 'hvp-engine\[experiments\]'"):
        experiments.run("trial")


@pytest.mark.parametrize(
    ("kind", "name", "needy"),
    [
        ("data", "shakespeare", replace(TRIAL, reads=("shakespeare",))),
        ("weights", "minilm", replace(TRIAL, loads=("minilm",))),
    ],
)
def test_data_and_weights_of_packages_are_missed_before_anything_is_computed(
    kind: str, name: str, needy: Driver, driver: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = PACKAGES[name] if kind == "data" else weights.CARRIED[name].package
    monkeypatch.setattr(registry, "DRIVERS", (needy,))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as if no package were installed
    computed: list[Setting] = []
    driver.run = computed.append  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=rf"{carried.distribution} is not installed; .*--{kind} {name}="):
        experiments.run("trial")
    assert not computed
    driver.run = trial  # type: ignore[attr-defined]
    paths: Any = {kind: {name: "."}}
    assert experiments.run("trial", **paths).holds


@pytest.mark.parametrize(
    "arguments", [{"options": {"steps": 5}}, {"data": {"mnist": "."}}], ids=["by an option", "by other data"]
)
def test_data_of_packages_that_others_replace_are_not_missed(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needy = replace(TRIAL, reads=("digits",), instead=("steps", "mnist"))
    monkeypatch.setattr(registry, "DRIVERS", (needy,))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert experiments.run("trial", **arguments).holds
    with pytest.raises(ConfigurationError, match="scikit-learn is not installed"):
        experiments.run("trial")


@pytest.mark.parametrize(
    ("name", "without", "changes"),
    [
        ("pretrained-lm", "bbcnews", {"options": {"target": "stdlib"}}),
        ("fine-tuning", "tweets", {"options": {"text": "bbcnews"}}),
        ("exact-mlp", "digits", {"data": {"mnist": Path()}}),
        ("exact-mlp", "digits", {"data": {"cifar100": Path()}}),
        ("curvature-against-gradient", "bbcnews", {"options": {"models": "vit"}}),
        ("layernorm-place", "shakespeare", {"data": {"cornell": Path()}}),
        ("curvature-against-gradient", "photographs", {}),  # only if pre-trained weights are installed
        ("gini", "photographs", {}),
    ],
)
def test_a_driver_is_not_refused_for_data_that_it_does_not_read(
    name: str, without: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find", lambda *arguments: None)
    monkeypatch.setattr(importlib.util, "find_spec", hidden_from(PACKAGES[without].module))
    driver = next(driver for driver in DRIVERS if driver.name == name)
    running.check(driver, Setting("small", 1, Path("out"), **changes))


def hidden_from(module: str) -> Any:
    """Find every module but one, whatever is installed."""
    found = types.SimpleNamespace(submodule_search_locations=["."])
    return lambda name, *rest: None if name == module else found


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path, driver: types.ModuleType
) -> None:
    driver.run = lambda setting: pytest.fail("it began to compute")  # type: ignore[attr-defined]
    (tmp_path / "file").write_text("of the user's")
    with pytest.raises(RunFolderError, match="file"):
        experiments.run("trial", out=tmp_path / "file")
    (tmp_path / "cache").write_text("of the user's")
    with pytest.raises(RunFolderError, match="cache"):
        experiments.run("trial", out=tmp_path / "trial")


def test_drivers_read_and_load_what_packages_carry() -> None:
    for driver in DRIVERS:
        assert set(driver.reads) <= set(PACKAGES) and set(driver.loads) <= set(weights.CARRIED)
        assert not driver.loads or registry.WEIGHTS in driver.needs


def test_a_driver_without_a_plan_costs_at_the_papers_size_what_it_costs_here(driver: types.ModuleType) -> None:
    setting = Setting("paper", 1, Path("out"))
    assert running.plan("trial", setting) == []
    driver.plan = lambda asked: [asked.size]  # type: ignore[attr-defined]
    assert running.plan("trial", setting) == ["paper"]
