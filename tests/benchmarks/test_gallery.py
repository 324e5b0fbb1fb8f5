"""benchmarks/gallery.py: what a page says of results, of claims that fail, and of what was not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import gallery
from hvp_engine.experiments import figures
from hvp_engine.experiments.registry import DRIVERS, Driver, find
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most

LICENCES = {"name": "digits", "licence": "BSD-3-Clause", "origin": "scikit-learn 1.9.1"}


def drawn(width: float = 8.0) -> figures.Figure:
    with figures.style():
        figure, axes = figures.page(1, 1, width, 2.0)
        axes[0, 0].plot([0, 1], [0, 1])
    return figure


def wrote(results: Path, name: str, *claims: Claim, rows: int = 2, **more: object) -> Driver:
    driver = find(name)
    settings = {"size": "small", "seeds": [0, 1, 2], "gpt": {"data": LICENCES}, "again": [LICENCES], **more}
    table = Table(("model", "JS0"), tuple((f"net {row}", 0.25 * row) for row in range(rows)))
    seconds = {"training": 30.0, "spectra": 60.0, "total": 90.0}
    result = Result(table, claims, drawn(), settings, seconds, ("An edge was met.",), {"grid": drawn(2.0)})
    result.write(results / driver.name, driver)
    return driver


GOOD = at_least("SGD's loss | c grows", "ratio", [2.0, 3.0, 4.0], 1.5, "figure 5", paper=4.9)
BAD = at_most("it is alike", "difference", [0.5, float("nan"), 0.1], 0.2, "ours")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    wrote(folder / "results", "scaled-mlp", GOOD, BAD, rows=100)
    wrote(folder / "results", "js-heatmaps", GOOD, given={"data": {"tweets": {"path": "/there", "bytes": 1}}})
    wrote(folder / "results", "outliers", BAD)
    gallery.write(folder / "results", folder / "docs")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "docs" / "experiments.md").read_text()


def section(page: str, id_: str) -> str:
    return re.split(r"^## ", page.partition(f"## {id_}: ")[2], flags=re.M)[0]


def test_every_driver_of_the_registry_has_a_section_and_a_link_that_leads_there(page: str) -> None:
    for driver in DRIVERS:
        assert f"\n## {driver.id}: {driver.name}\n" in page
        assert f"[{driver.name}](#{driver.id.lower()}-{driver.name})" in page
    assert "<!--" not in page


def test_drivers_without_results_are_said_not_to_have_run(page: str) -> None:
    assert page.count("Not run yet.") == page.count("| not run yet |") == len(DRIVERS) - 3
    assert "Not run yet." in section(page, "D1") and "Not run yet." not in section(page, "D5")


def test_a_claim_stands_with_bound_values_paper_and_source_and_one_that_fails_is_said_to(page: str) -> None:
    lines = [line for line in section(page, "D5").splitlines() if line.startswith("| ")]
    assert "| SGD's loss \\| c grows | ratio | at least 1.50 | 2.00, 3.00, 4.00 | yes | 4.90 | figure 5 |" in lines
    assert "| it is alike | difference | at most 0.200 | 0.500, nan, 0.100 | **no** | none comparable | ours |" in lines
    assert "**no**: 1 of 2 claims" in section(page, "D5") and "Holds: yes." in section(page, "D4")
    assert re.search(r"^\| D5 \|.*\| \*\*no\*\*: 1 of 2 claims \| 1.5 \|$", page, re.M)
    assert re.search(r"^\| F5 \|.*\| \*\*no\*\* \|", page, re.M)


def test_a_section_says_size_seeds_minutes_notes_data_and_weights(page: str) -> None:
    text = section(page, "D4")
    assert "- An edge was met." in text
    assert "Size small; seeds 0, 1, 2; 1.5 minutes (spectra 1.0, training 0.5)." in text
    assert text.count("digits (BSD-3-Clause; scikit-learn 1.9.1)") == 1 and "tweets (given as a path)" in text


def test_what_people_have_to_say_of_a_driver_stands_in_its_section_where_it_has_run(folder: Path) -> None:
    again = folder / "again"
    template = folder / "template.md"
    template.write_text(f"# Page\n\n{gallery.SECTIONS}<!-- D4 -->\nOf heat maps.\n\n<!-- D9 -->\nOf quadratics.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "TEMPLATE", template)
        gallery.write(folder / "results", again)
    text = (again / "experiments.md").read_text()
    assert "\n\nOf heat maps.\n\n" in section(text, "D4") and text.count("Of heat maps.") == 1
    assert "Of quadratics." not in text and text.startswith("# Page\n\n## D1")


def test_a_long_table_is_cut_and_says_so(page: str) -> None:
    assert "| net 39 |" in page and "| net 40 |" not in page
    assert "60 more rows are in its `table.csv`." in section(page, "D5")


def test_figures_are_beside_the_page_and_small(page: str, folder: Path) -> None:
    names = re.findall(r"\]\((experiments/.*?\.png)\)", section(page, "D5"))
    assert names == ["experiments/scaled-mlp.png", "experiments/scaled-mlp-grid.png"]
    for name in names:
        found = (folder / "docs" / name).read_bytes()
        width = int.from_bytes(found[16:20], "big")  # of the PNG's header
        assert found.startswith(b"\x89PNG") and width <= 1000 and len(found) < 20_000


def test_written_again_it_is_the_same_page_without_what_has_gone(page: str, folder: Path) -> None:
    (folder / "docs" / "experiments" / "old.png").write_bytes(b"")
    assert gallery.write(folder / "results", folder / "docs") == 3
    assert (folder / "docs" / "experiments.md").read_text() == page
    assert not (folder / "docs" / "experiments" / "old.png").exists()
