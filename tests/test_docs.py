"""The pages of docs/: their code runs, or says why not; links and navigation lead somewhere; the reference is whole."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import COMMAND, code_blocks, run_page

import hvp_engine

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))
# Blocks that begin with "# Not run by the tests: REASON.", by page.
NOT_RUN = {
    "cluster.md": 4,
    "how_to/during_training.md": 3,
    "how_to/hugging_face.md": 1,
    "index.md": 1,
    "migration.md": 4,
    "plan_gpt2.md": 1,
    "run_folder.md": 1,
}
WITH_TESTS_OF_ITS_OWN = "wrong_second_derivatives.md"
RUN, SHOWN = {"python", "bash"}, {"text", "yaml", "json"}
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]+)(#[^)]*)?\)")

pytestmark = pytest.mark.usefixtures("one_thread")


def runnable(page: str) -> bool:
    return any(block.language in RUN and not block.not_run() for block in code_blocks(DOCS / page))


def navigation(entry: Any) -> list[str]:
    """The files of a part of mkdocs.yml's nav."""
    if isinstance(entry, str):
        return [entry]
    return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in navigation(part)]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page) and page != WITH_TESTS_OF_ITS_OWN])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(DOCS / page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_can_be_run_or_is_marked(page: str) -> None:
    blocks = code_blocks(DOCS / page)
    assert {block.language for block in blocks} <= RUN | SHOWN
    fences = sum(line.lstrip(" >").startswith(("```", "~~~")) for line in (DOCS / page).read_text().splitlines())
    assert fences == 2 * len(blocks), "A fence that is indented or not closed is not seen."
    for block in blocks:
        if block.language == "bash" and not block.not_run():
            assert all(command.startswith(COMMAND) for command in block.commands()), block.text


def test_blocks_that_are_not_run_are_counted() -> None:
    marked = {page: sum(block.not_run() is not None for block in code_blocks(DOCS / page)) for page in PAGES}
    assert {page: count for page, count in marked.items() if count} == NOT_RUN


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_a_script(notebook: Path) -> None:
    runpy.run_path(str(notebook), run_name=notebook.stem)


def test_the_navigation_has_every_page_once() -> None:
    found = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(found) == sorted([*PAGES, *(f"notebooks/{path.name}" for path in NOTEBOOKS)])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages(page: str) -> None:
    for match in LINK.finditer((DOCS / page).read_text()):
        target = ((DOCS / page).parent / match[1]).resolve()
        assert target.is_file() and target.is_relative_to(DOCS), match[0]


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: hvp_engine\.(\w+)$", text, re.MULTILINE))
    missing = set(hvp_engine.__all__) - documented
    assert not missing, f"Add '::: hvp_engine.NAME' to a page in docs/reference for {sorted(missing)}."


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None and citation["version"] == version[1]
