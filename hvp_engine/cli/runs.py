"""The command that prints finished runs, of whatever kind: show."""

from __future__ import annotations

import json
from typing import Any

import typer

from hvp_engine.cli.arguments import Json, Run
from hvp_engine.cli.kinds import kind_of
from hvp_engine.cli.output import say
from hvp_engine.results.words import targets_text
from hvp_engine.system.formatting import shorten

_LONGEST = 1000  # columns of what a run says of itself: it may be a stranger's
_CEILINGS = ("steps", "probes")  # where a tolerance by name decides


def show(run: Run, as_json: Json = False) -> None:
    """Print the table of a run.

    Numbers with their errors, what they cost, and what was not reached.
    """
    kind = kind_of(run)
    result = kind.load(run)
    if as_json:
        typer.echo(json.dumps(kind.record(result), indent=1))
        return
    kind.print(result)
    config, notes = result.manifest.get("config"), result.manifest.get("notes")
    config = config if isinstance(config, dict) else {}
    for key in kind.settings:
        if key in config:
            say(f"{key:16}{shorten(_setting(key, config), _LONGEST)}")
    for note in notes if isinstance(notes, list) else []:
        say(f"{'note':16}{shorten(str(note), _LONGEST)}")


def _setting(key: str, config: dict[str, Any]) -> str:
    """Write one setting: targets by their names, and ceilings for what they are."""
    if key == "tolerance":
        return targets_text(config[key])
    return f"{'at most ' * (key in _CEILINGS and 'tolerance' in config)}{config[key]}"
