"""How close the losses and products of the same job must be, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvp_engine.errors import ForeignRunError
from hvp_engine.jobs.comparison import differences, refuse_foreign

HERE = {"versions": {"torch": "2.13.0"}, "threads": 4, "microbatch": None}


def identity(mean: float = 2.0, product: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "precision": "fp32",
        "modules": {"": "Net(eps=1e-05)"},
        "parameters": {"a": "1", "b": "2"},
        "losses": [[12.0, 6.0], [mean * 6.0, 6.0]],
        "products": {"a": product, "b": 1e-9},
        "loss": "loss [12ab]",
        "environment": HERE,
        **changes,
    }


@pytest.mark.parametrize(("precision", "least"), [("fp64", 1e-10), ("fp32", 3e-6), ("tf32", 3e-5), ("bf16", 3e-4)])
def test_a_difference_beyond_rounding_is_one(precision: str, least: float) -> None:
    found = identity(precision=precision)
    assert differences(found, identity(2.0 * (1 + 0.01 * least), precision=precision)) == []
    assert differences(found, identity(2.0 * (1 + least), precision=precision))


@pytest.mark.parametrize("change", [{"threads": 1}, {"microbatch": 2}, {"backend": "torch"}])
def test_elsewhere_the_same_code_may_round_more(change: dict[str, Any]) -> None:
    moved = {"environment": {**HERE, **change}}
    assert differences(identity(), identity(2.0002, 2.0, **moved)) == []
    assert differences(identity(), identity(2.02, **moved)) == ["loss of batch 1: 2 there, 2.02 here"]
    assert differences(identity(), identity(2.0002, loss="loss [34cd]", **moved))


def test_products_tell_what_losses_do_not() -> None:
    assert differences(identity(), identity(product=1.0 + 1e-6)) == []
    assert differences(identity(), identity(product=1.1)) == ["curvature of block a: 1 there, 1.1 here"]
    noise = {**identity(), "products": {"a": 1.0, "b": 3e-9}}
    assert differences(identity(), noise) == []


def test_another_release_may_show_settings_differently_but_not_other_classes() -> None:
    newer = {"environment": {**HERE, "versions": {"torch": "2.14.0"}}, "loss": "loss [other bytes]"}
    assert differences(identity(), identity(modules={"": "Net(eps=1e-05, bias=True)"}, **newer)) == []
    assert differences(identity(), identity(modules={"": "Other(eps=1e-05)"}, **newer)) == [
        "the model Net there, Other here"
    ]


def test_a_setting_that_changes_no_bit_is_none_of_the_job() -> None:
    for changed in ("Net(eps=1e-05, calls=7)", "Net(eps=1e-12)"):
        assert differences(identity(), identity(modules={"": changed})) == []
        assert differences(identity(), identity(2.0 + 1e-14, modules={"": changed}))
        assert differences(identity(), identity(product=1.0 + 1e-14, modules={"": changed}))
    assert differences(identity(), identity(modules={"": "Other(eps=1e-05)"})) == ["the model Net there, Other here"]
    assert differences(identity(losses=[]), identity(losses=[], modules={"": "Net(eps=1)"}))


def test_causes_are_said_and_not_their_consequences() -> None:
    changed = identity(3.0, parameters={"a": "1", "b": "3"})
    assert differences(identity(), changed) == ["parameters: b changed"]


def test_long_descriptions_are_shown_from_where_they_differ() -> None:
    words = "Net(" + ", ".join(f"setting_{i}={i}" for i in range(40))
    longer = identity(product=1.5, modules={"": words + ", last=1)"})
    (difference,) = differences(identity(modules={"": words + ")"}), longer)
    assert difference == "the model ...38=38, setting_39=39) there, ...38=38, setting_39=39, last=1) here"


@pytest.mark.parametrize("key", ["modules", "parameters", "data", "losses", "products", "environment", "loss"])
@pytest.mark.parametrize("value", [None, 3, "text", [None], [[1]], {"a": None}])
def test_whatever_a_file_says_is_compared_without_failing(key: str, value: Any) -> None:
    stored = {**identity(), key: value}
    assert isinstance(differences(stored, identity()), list)


def test_what_a_stranger_wrote_does_not_steer_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(ForeignRunError) as caught:
        refuse_foreign(identity(modules={"": "\x1b[2J"}, seed="\x1b]0;"), identity(), tmp_path)
    assert str(caught.value).isprintable() and r"\x1b[2J" in str(caught.value)
