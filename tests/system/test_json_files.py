"""JSON files with a checksum of their own content."""

import json

import pytest

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.system.json_files import read_json, sealed, write_json

DOCUMENT = {"a": [1, 2.5, None, True, -0.0, 1e-320, 10**30], "µ": {"10": "x", "9": "\x1b[31m\n\ud7ff"}, "": {}}


def test_a_document_comes_back(tmp_path):
    write_json(tmp_path / "a.json", DOCUMENT)
    assert read_json(tmp_path / "a.json") == DOCUMENT


def test_tuples_and_keys_that_are_numbers_come_back_as_json_has_them(tmp_path):
    write_json(tmp_path / "a.json", {"a": (1, (2,)), "b": {10: "x", 9: "y"}})
    assert read_json(tmp_path / "a.json") == {"a": [1, [2]], "b": {"10": "x", "9": "y"}}


def test_a_document_that_has_a_checksum_already_gets_a_new_one():
    once = sealed(DOCUMENT)
    assert sealed(once) == once
    assert sealed({**once, "a": 1})["checksum"] != once["checksum"]


def test_every_flipped_bit_is_seen_or_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, DOCUMENT)
    data, unnoticed = path.read_bytes(), 0
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert read_json(path) == DOCUMENT
            unnoticed += 1
        except RunFolderError:
            pass
    assert unnoticed < len(data)  # white space, and the case of digits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "1",
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        "{" + '"a": [' * 90 + "]" * 90 + "}",
        '{"a": ' + "9" * 10_000 + "}",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": 1, "a": 1}',
        '{"a": "\\ud800"}',
        '{"a": "\ufffd"}',
        '{"a": 1} x',
        "{}",
        '{"checksum": []}',
        '{"checksum": {"checksum": 1}}',
    ],
)
def test_what_is_not_a_sealed_document_is_an_error_of_one_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode().replace("\ufffd".encode(), b"\xff"))
    with pytest.raises(RunFolderError, match=r"a\.json is damaged, .* restore it from a copy") as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).isprintable()


def nested(depth):
    document = {}
    for _ in range(depth):
        document = {"a": document}
    return document


@pytest.mark.parametrize("document", [{"a": float("nan")}, {"a": object()}, {"a": {1: 1, "b": 1}}, nested(200)])
def test_what_could_not_be_read_is_not_written(tmp_path, document):
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        write_json(tmp_path / "a.json", document)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_json_for_others(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1]})
    assert json.loads((tmp_path / "a.json").read_text())["a"] == [1]
