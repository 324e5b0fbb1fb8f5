"""Options of the commands that are more than a number or a word."""

import pytest

from hvp_engine.cli.options import processes_of, tolerance_of
from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.stopping import Targets


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (None, None),
        ([], None),
        (["0.02"], {"w1": 0.02}),
        (["js=0.01"], {"js": 0.01}),
        ([" trace = 1e-2 ", "0.05"], {"trace": 0.01, "w1": 0.05}),
    ],
)
def test_tolerances_are_numbers_with_or_without_a_name(given, targets):
    found = tolerance_of(given)
    assert found == targets
    assert found is None or Targets.parse(found).record() == targets


def test_a_number_without_a_name_is_the_target_that_it_is_in_python():
    assert Targets.parse(tolerance_of(["0.02"])) == Targets.parse(0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["little"], "'little' is neither a number nor NAME=NUMBER"),
        (["js=little"], "'js=little' is neither"),
        (["js="], "'js=' is neither"),
        (["js=0.1", "js=0.2"], "target 'js' twice"),
        (["0.1", "w1=0.2"], "target 'w1' twice"),
    ],
)
def test_tolerances_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        tolerance_of(given)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (None, None),
        ("off", None),
        ("auto", "auto"),
        ("probes=2,data=4", {"probes": 2, "data": 4}),
        (" data = 3 ", {"data": 3}),
    ],
)
def test_processes_are_shared_as_they_are_in_python(given, asked):
    assert processes_of(given) == asked


def test_under_torchrun_processes_share_the_job_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_of(None) == "auto" and processes_of("off") is None


@pytest.mark.parametrize("given", ["all", "probes", "data=two", "data=-1", "data=1,data=2"])
def test_other_ways_to_share_are_refused(given):
    with pytest.raises(ConfigurationError, match="--distributed"):
        processes_of(given)
