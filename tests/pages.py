"""The code blocks of a Markdown page, and how they are run."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvp_engine import cli

COMMAND = "hvp-engine "
FENCE = re.compile(r"^```(\w*).*\n((?:.*\n)*?)```$", re.MULTILINE)
MARK = re.compile(r"# Not run by the tests: (.+)\.\n")  # the visible convention: the first line of a block


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its page, its language, its text and the line of the page on which the text begins."""

    page: Path
    language: str
    text: str
    line: int

    def file_name(self) -> str | None:
        """The name in a first line like ``# job.py``: that of the file to be written."""
        match = re.match(r"# (\w+\.py)\n", self.text)
        return match[1] if match else None

    def not_run(self) -> str | None:
        """Why the block is not run, where its first line says so."""
        match = MARK.match(self.text)
        return match[1] if match else None

    def commands(self) -> list[str]:
        """The lines of a shell block, without comments."""
        return [shlex.join(words) for line in self.text.splitlines() if (words := shlex.split(line, comments=True))]

    def execute(self, namespace: dict[str, Any]) -> None:
        """Run a Python block; tracebacks show the page's own lines."""
        exec(compile("\n" * (self.line - 1) + self.text, str(self.page), "exec"), namespace)


def code_blocks(page: Path, language: str | None = None) -> list[CodeBlock]:
    text = page.read_text()
    blocks = [
        CodeBlock(page, match[1], match[2], text[: match.start(2)].count("\n") + 1) for match in FENCE.finditer(text)
    ]
    return [block for block in blocks if language in (None, block.language)]


def write_files(blocks: list[CodeBlock], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files that Python blocks name; what a command imports of them is forgotten after the test."""
    for block in blocks:
        if name := block.file_name():
            (folder / name).write_text(block.text)
            monkeypatch.setitem(sys.modules, name.removesuffix(".py"), None)


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an ``hvp-engine`` command in this process; it has to end with exit code 0."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, command


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of a page in their order, the Python ones in one namespace, which is returned."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in code_blocks(page):
        if block.not_run():
            continue
        if block.language == "python":
            write_files([block], folder, monkeypatch)
            block.execute(namespace)
        elif block.language == "bash":
            for command in block.commands():
                run_command(command, monkeypatch)
    return namespace
