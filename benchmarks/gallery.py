"""Write docs/experiments.md from a results folder: ``python benchmarks/gallery.py results``.

One section per driver of the registry: claims with their bounds and values, figure, table, seeds, time, data. What
people wrote stands in ``gallery.md`` beside this file: the page with markers where the sections come, and behind them
what is to be said of single drivers (``<!-- F1 -->``). Figures are made smaller. What the folder lacks is listed as
not run.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from hvp_engine.experiments.registry import DRIVERS, Driver
from hvp_engine.system.formatting import format_number

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_suffix(".md")
OVERVIEW, SECTIONS = "<!-- overview -->\n", "<!-- sections -->\n"
_WIDTH, _COLOURS = 1000, 128  # pixels and entries of the palette of a figure
_ROWS = 40  # of a table; what is longer is cut
_ALIGNED = {">=": "at least", "<=": "at most"}


def write(results: Path, docs: Path) -> int:
    """Write ``experiments.md`` and the figures beside it; return how many drivers of the registry have results.

    Args:
        results: Folder with a folder per driver.
        docs: Where the page goes; its figures go to ``experiments/`` in there, which loses the figures it had.
    """
    pictures = docs / "experiments"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    folders = {driver: results / driver.name for driver in DRIVERS}
    done = {driver: read(folder) for driver, folder in folders.items() if (folder / "manifest.json").is_file()}
    page, _, remarks = TEMPLATE.read_text().partition(SECTIONS)
    said = dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n*(?=<!--|\Z)", remarks, re.DOTALL))
    sections = []
    for driver in DRIVERS:
        if driver in done:
            names = list(copy_figures(folders[driver], pictures, driver.name))
            table = (folders[driver] / "table.md").read_text()
            sections.append(section(driver, *done[driver], table, names, said.get(driver.id, "")))
        else:
            sections.append(f"## {title(driver)}\n\n{driver.claim} Not run yet.\n")
    text = page.replace(OVERVIEW, overview(done)) + "\n".join(sections)
    (docs / "experiments.md").write_text(text)
    return len(done)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was decided, and the manifest."""
    decided, manifest = (json.loads((folder / name).read_text()) for name in ("claim.json", "manifest.json"))
    return decided, manifest


def title(driver: Driver) -> str:
    """Return the heading of a driver's section."""
    return f"{driver.id}: {driver.name}"


def overview(done: Mapping[Driver, tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Return the table of all drivers: what each claims, how many of its claims hold, how long it took."""
    lines = ["| | experiment | claim | holds | minutes |", "|---|---|---|---|---|"]
    for driver in DRIVERS:
        anchor = re.sub(r"[^a-z0-9 -]", "", title(driver).lower()).replace(" ", "-")
        verdict, minutes = "not run yet", ""
        if driver in done:
            decided, manifest = done[driver]
            verdict, minutes = holds(decided), taken(manifest)
        lines.append(f"| {driver.id} | [{driver.name}](#{anchor}) | {driver.claim} | {verdict} | {minutes} |")
    return "\n".join(lines) + "\n"


def holds(decided: Mapping[str, Any]) -> str:
    """Say how many claims hold."""
    claims = decided["claims"]
    count = sum(claim["holds"] for claim in claims)
    if not claims:
        return "nothing decided"
    if count == len(claims):
        return "yes"
    return f"**no**: {count} of {len(claims)} claims" if count else "**no**"


def section(
    driver: Driver,
    decided: Mapping[str, Any],
    manifest: Mapping[str, Any],
    table: str,
    figures: list[str],
    remark: str,
) -> str:
    """Return a driver's section; ``remark`` is what people have to say of it."""
    seeds = ", ".join(map(str, manifest["settings"]["seeds"]))
    facts = [f"Size {manifest['settings']['size']}", f"seeds {seeds}", f"{taken(manifest)} minutes"]
    if parts := [f"{part} {minutes(seconds)}" for part, seconds in manifest["seconds"].items() if part != "total"]:
        facts[-1] += f" ({', '.join(parts)})" if len(parts) > 1 else ""
    pieces = [
        f"## {title(driver)}",
        f"{driver.claim} Holds: {holds(decided)}.",
        "\n".join(f"![{driver.claim}]({name})" for name in figures),
        "\n".join(claim_lines(decided["claims"])),
        remark,
        shortened(table),
        "\n".join(f"- {note}" for note in manifest["notes"]),
        f"{'; '.join(facts)}. {sources(manifest['settings'])}".rstrip(),
    ]
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def claim_lines(claims: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table of claims."""
    if not claims:
        return
    yield "| claim | statistic | bound | found, by seed | holds | the paper's | source |"
    yield "|---|---|---|---|---|---|---|"
    for claim in claims:
        values = ", ".join(map(number, claim["values"]))
        bound = f"{_ALIGNED[claim['relation']]} {number(claim['threshold'])}"
        paper = "none comparable" if claim["paper"] is None else number(claim["paper"])
        verdict = "yes" if claim["holds"] else "**no**"
        cells = (claim["statement"], claim["statistic"], bound, values, verdict, paper, claim["source"])
        bars = [cell.replace("|", "\\|") for cell in cells]
        yield f"| {' | '.join(bars)} |"


def shortened(table: str) -> str:
    """Return a table of at most so many rows."""
    lines = table.strip().splitlines()
    rest = len(lines) - 2 - _ROWS
    return "\n".join(lines[: 2 + _ROWS]) + (f"\n\n{rest} more rows are in its `table.csv`." if rest > 0 else "")


def sources(settings: Mapping[str, Any]) -> str:
    """Say which data and weights the numbers are from, each once, as the manifest has them at any depth."""
    found = {
        f"{facts['name']} ({facts['licence']}; {facts['origin']})": None
        for facts in nested(settings)
        if {"name", "licence", "origin"} <= facts.keys()
    }
    paths = [f"{name} (given as a path)" for name in given(settings)]
    return f"Data and weights: {', '.join([*found, *paths])}." if found or paths else ""


def given(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the data that the command pointed at; its weights say themselves where they come from."""
    found: dict[str, Any] = settings.get("given", {}).get("data", {})
    return list(found)


def nested(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield a mapping and all mappings in it."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from nested(inner)


def taken(manifest: Mapping[str, Any]) -> str:
    """Return the minutes that a driver took."""
    return minutes(manifest["seconds"]["total"])


def minutes(seconds: float) -> str:
    """Return seconds as minutes, to a tenth or, below that, to two digits."""
    return f"{seconds / 60.0:.1f}" if seconds >= 6.0 else f"{seconds / 60.0:.2g}"


def number(value: float | str) -> str:
    """Write a number of a JSON file, where what is not finite is text."""
    found = float(value)
    return str(value) if not math.isfinite(found) else format_number(found, 3)


def copy_figures(folder: Path, pictures: Path, driver: str) -> Iterator[str]:
    """Copy a driver's figures, the main one first, and yield their paths as the page has them."""
    found = sorted(folder.glob("*.png"), key=lambda path: (path.stem != "figure", path.stem))
    for path in found:
        name = f"{driver}.png" if path.stem == "figure" else f"{driver}-{path.stem}.png"
        (pictures / name).write_bytes(smaller(path.read_bytes()))
        yield f"{pictures.name}/{name}"


def smaller(content: bytes) -> bytes:
    """Return a picture of at most a thousand pixels' width, with a palette."""
    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGB")
    if picture.width > _WIDTH:
        height = round(picture.height * _WIDTH / picture.width)
        picture = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return min(content, buffer.getvalue(), key=len)


def main() -> None:
    """Read the command line, write the page, and say how large it has become."""
    parser = argparse.ArgumentParser(description="Write docs/experiments.md from a results folder.")
    parser.add_argument("results", type=Path, help="folder that `hvp-engine experiment` has written")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    asked = parser.parse_args()
    count = write(asked.results, asked.docs)
    size = sum(path.stat().st_size for path in (asked.docs / "experiments").iterdir())
    print(f"{count} of {len(DRIVERS)} experiments; figures take {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
