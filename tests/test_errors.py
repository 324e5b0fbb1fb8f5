from __future__ import annotations

import traceback

import pytest
from strange_names import STRANGE_NAMES

from hvp_engine.errors import ConfigurationError, HvpEngineError, OutOfMemoryError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u009b2J", "\\x9b2J"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\u202eevil\u200b", "\\u202eevil\\u200b"),
        ("\ud800", "\\ud800"),
        ("名前 😀 é $x_1$ \\alpha <b> [red]", "名前 😀 é $x_1$ \\alpha <b> [red]"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_becomes_its_escape_and_the_rest_stays(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("kind", [HvpEngineError, ConfigurationError, OutOfMemoryError])
def test_messages_send_nothing_to_the_terminal_but_keep_their_lines(kind):
    for name in STRANGE_NAMES:
        error = kind(f"The block {name} is bad; do this:\n    loss = ...")
        assert all(line.isprintable() for line in str(error).split("\n"))
        assert str(error).endswith("is bad; do this:\n    loss = ...")
    error = kind("Version \x1b[31m is too new.")
    assert "\x1b" not in "".join(traceback.format_exception(error))
    assert error.args == ("Version \x1b[31m is too new.",)
