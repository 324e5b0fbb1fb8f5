"""What the command says of itself: readable at 80 columns, complete, and helpful where something is mistyped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer.main

import hvp_engine as he
from hvp_engine import cli

GROUP = typer.main.get_command(cli.app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvp-engine", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def words(text: str) -> str:
    return " ".join(text.split())


def defaults() -> Iterator[tuple[str, str, str]]:
    """Yield command, option and default of every option that is used with a value where nothing is typed."""
    for name, command in COMMANDS.items():
        for option in command.params:
            if option.default is not None and not isinstance(option.default, bool):
                yield name, option.opts[0], str(getattr(option.default, "value", option.default))


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *([name] if name else []), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.rstrip().endswith(("...", "\u2026"))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_is_shown_as_it_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--help") == 0
    shown = words(capsys.readouterr().out)
    command = COMMANDS[name]
    assert words(command.help) in shown
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{name} {parameter.name} has no help"
            assert words(parameter.help) in shown, f"{name} {parameter.name}"


def test_brackets_in_help_texts_survive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS.values():
        for parameter in command.params:
            monkeypatch.setattr(parameter, "help", "Before [default: all of it] after, [bold]not bold[/bold].")
    monkeypatch.setattr(typer.main, "get_command", lambda _: GROUP)
    assert call(monkeypatch, "slq", "--help") == 0
    assert "Before [default: all of it] after, [bold]not bold[/bold]." in words(capsys.readouterr().out)


@pytest.mark.parametrize(("name", "option", "value"), list(defaults()))
def test_a_default_is_shown(
    name: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--help") == 0
    text = words(capsys.readouterr().out.partition(f"  {option} ")[2])
    assert f"[default: {value}]" in text.partition(" --")[0]


def test_folders_are_explained_where_they_are_asked_for() -> None:
    for name, command in COMMANDS.items():
        (out,) = [parameter for parameter in command.params if parameter.name == "out"] or [None]
        if out is not None:
            assert "go there" in out.help and "the same command" in f"{command.help} {out.help}".lower(), name


def test_exit_codes_are_documented(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    shown = words(capsys.readouterr().out)
    for code in ("0, done", "1, an error", "2, an option or argument is missing", "130, interrupted", "143, ended"):
        assert code in shown


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_printed(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, option) == 0
    assert capsys.readouterr().out == f"hvp-engine {he.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("slqq",), "slq"),
        (("off_diagonal",), "off-diagonal"),
        (("slq", "job.py:job", "--tolerence", "0.1"), "--tolerance"),
        (("trace", "job.py:job", "--product", "9"), "--products"),
        (("slq", "job.py:job", "--operator", "hesian"), "hessian"),
    ],
)
def test_a_typing_error_gets_a_suggestion(
    typed: tuple[str, ...], meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *typed) == 2
    error = capsys.readouterr().err
    assert "\u256d" not in error  # a message, no box of many lines
    assert meant in error.splitlines()[-1]


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch)
    shown = capsys.readouterr()
    assert "Commands:" in shown.out + shown.err


def test_help_in_a_pipe_is_as_wide_as_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hvp_engine", "slq", "--help"], capture_output=True, text=True, check=True, env=None
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "--head-curvature-tolerance" in done.stdout
