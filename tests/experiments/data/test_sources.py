"""Packages are found without being imported, what is missing is said with its remedy, contents are digested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.source import EXTRA, Package, digest, given, required, sizes_digest

ABSENT = Package("no-such-package", "no_such_package_anywhere", "MIT", EXTRA, "--data tweets=FILE")


def test_a_missing_package_is_an_error_that_names_the_extra_and_the_option() -> None:
    with pytest.raises(ConfigurationError, match=r"no-such-package.*hvp-engine\[experiments\].*--data tweets=FILE"):
        ABSENT.folder()


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carries_data").mkdir()
    (tmp_path / "carries_data" / "__init__.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = Package("carries-data", "carries_data", "MIT", EXTRA)
    assert package.folder() == tmp_path / "carries_data"
    assert "carries_data" not in sys.modules


def test_a_package_describes_what_was_read(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text")
    described = ABSENT.source("tweets", [file]).described()
    assert described == {
        "name": "tweets",
        "licence": "MIT",
        "origin": "no-such-package of unknown version",
        "digest": digest([file]),
    }


def test_the_digest_is_that_of_the_contents(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 3_000_000)
    other.write_bytes(b"a" * 3_000_000)
    assert digest([one]) == digest([other]) != digest([one, other])
    other.write_bytes(b"a" * 2_999_999 + b"b")
    assert digest([one]) != digest([other])


def test_the_digest_of_sizes_follows_names_and_sizes(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_bytes(b"ab")
    before = sizes_digest([one])
    one.write_bytes(b"abc")
    assert sizes_digest([one]) != before


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Nothing is at .*gone.*a csv file"):
        given("tweets", {"tweets": tmp_path / "gone"}, "a csv file")
    assert given("tweets", None, "a csv file") is None
    assert given("tweets", {"tweets": tmp_path}, "a csv file") == tmp_path


def test_what_no_package_carries_has_to_be_given() -> None:
    with pytest.raises(ConfigurationError, match=r"--data mnist=PATH"):
        required("mnist", {}, "a folder")
