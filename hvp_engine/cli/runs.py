"""The command that prints finished runs, of whatever kind: show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from hvp_engine.cli.arguments import Json, Run
from hvp_engine.cli.kinds import SLQ, kind_of
from hvp_engine.cli.output import say
from hvp_engine.results.export import json_text
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
        typer.echo(json_text({**kind.record(result), "run": _facts(result.manifest)}, indent=1))
        return
    kind.print(result)
    facts = _facts(result.manifest)
    for key in kind.settings:
        if key in facts["settings"]:
            say(f"{key:16}{shorten(_setting(key, facts['settings']), _LONGEST)}")
    for note in facts["notes"]:
        say(f"{'note':16}{shorten(str(note), _LONGEST)}")


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the job, a stranger's perhaps: the same keys, whatever it lacks."""
    config, notes = manifest.get("config"), manifest.get("notes")
    settings = config if isinstance(config, dict) else {}
    told = {key: manifest.get(key) for key in ("origin", "versions", "seconds")}
    return {
        "job": settings.get("job", SLQ),
        "settings": settings,
        "notes": notes if isinstance(notes, list) else [],
        **told,
    }


def _setting(key: str, config: dict[str, Any]) -> str:
    """Write one setting: targets by their names, and ceilings for what they are."""
    if key == "tolerance":
        return targets_text(config[key])
    return f"{'at most ' * (key in _CEILINGS and 'tolerance' in config)}{config[key]}"
