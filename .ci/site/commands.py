"""A hook of mkdocs: the page of the commands gets the help text of each from the command itself."""

from __future__ import annotations

from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from hvp_engine.cli.commands import app

MARK = "<!-- commands -->"
PLAIN = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put one section for every command in the place of the mark."""
    return markdown.replace(MARK, "\n".join(map(section, get_command(app).commands))) if MARK in markdown else markdown


def section(name: str) -> str:
    """Write a command's help as Markdown."""
    found = CliRunner().invoke(app, [name, "--help"], env=PLAIN, prog_name="hvp-engine")
    assert found.exit_code == 0, found.output
    lines = "\n".join(line.rstrip() for line in found.output.strip().splitlines())
    return f"## {name}\n\n```text\n{lines}\n```\n"
