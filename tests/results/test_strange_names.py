"""Names and settings of strangers' runs in tables, figures and the command: shown, and nothing else."""

from __future__ import annotations

import io
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from rich.console import Console
from strange_names import STRANGE_NAMES

from hvp_engine.cli import commands
from hvp_engine.errors import ConfigurationError, printable
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.table import summary_table
from hvp_engine.results.words import number_text

DRAWN = [name for name in STRANGE_NAMES if set(name) & set("\x1b\n\u202e$\\^<名") and "]0" not in name]
SETTINGS = {"seed": "\x1b[31m$\\frac{$", "precision": ["\u202e", {"a": 1}], "basis": "b\nc"}


def spectra_named(names, scale=1.0, numel=66_945_024):
    rng = np.random.default_rng(0)
    return Spectra(
        [
            Spectrum.from_tridiagonal(
                name, numel, scale * rng.normal(size=(3, 4)), scale * rng.uniform(0.1, 1, size=(3, 3)), [4, 3, 4]
            )
            for name in names
        ],
        {"config": SETTINGS, "notes": ["\x1b[2J tied", "\x07"]},
    )


def printed(spectra, width):
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(summary_table(spectra.summarize(), width))
    return console.file.getvalue().splitlines()


def texts_of(svg):
    with open(svg, encoding="utf-8") as file:
        return ["".join(node.itertext()) for node in ElementTree.parse(file).iter() if node.tag.endswith("}text")]


def test_tables_show_strange_names_literally():
    spectra = spectra_named(STRANGE_NAMES)
    for lines in (spectra.summary().splitlines(), printed(spectra, 80), printed(spectra, 250)):
        assert all(line.isprintable() for line in lines)
        for name in ("[red]markup[/red]", "[/]", ":smile:", "$\\frac{$", "<b>&amp;</b>", "名前.重み", "two\\nlines"):
            assert sum(line.startswith(name) for line in lines) == 1
    assert repr(spectra).isprintable()


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
@pytest.mark.filterwarnings("error")
def test_figures_show_strange_names_literally(tmp_path, suffix):
    spectra = spectra_named(DRAWN)
    with mpl.rc_context({"text.usetex": suffix == "png"}):  # as a user may have set it
        spectra.plot(tmp_path / f"a.{suffix}")
        spectra.plot_js(tmp_path / f"b.{suffix}")
    if suffix == "svg":
        drawn = texts_of(tmp_path / "a.svg"), texts_of(tmp_path / "b.svg")
        for name in DRAWN:
            if "31mred" not in name:  # two of these look alike, and are numbered
                assert all(printable(name) in texts for texts in drawn)


def test_letters_that_no_font_has_are_told_apart_in_bitmaps(tmp_path):
    one, other = spectra_named(["名前"]), spectra_named(["重み"])
    for number, spectra in enumerate((one, other)):
        spectra.plot_js(tmp_path / f"{number}.png")
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


@pytest.mark.parametrize("names", [["w1", "b1"], [f"transformer.h.{i}.attn.c_attn.weight" for i in range(12)]])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_a_terminal_of_80_columns_has_whole_names_and_numbers(names, scale):
    spectra = spectra_named(names, scale)
    lines = printed(spectra, 80)
    assert max(map(len, lines)) <= 80
    words = [word for line in lines for word in line.split()]
    for spectrum, name in zip(spectra.values(), names, strict=True):
        assert words.count(name) == 1
        numbers = (spectrum.trace(), spectrum.frobenius_norm(), spectrum.smallest(1), spectrum.largest(1))
        for estimate, bound in zip(numbers, ("", "", "≤", "≥"), strict=True):
            text = number_text(estimate, bound=bound)
            assert text.value in words
            assert text.bar in " ".join(words)
    assert words.count("66,945,024") == words.count("3–4x3") == len(names)


def test_names_longer_than_the_terminal_lose_their_middle_and_stay_different():
    names = [f"model.{'layers.' * 20}{i}.{'mlp.' * 20}weight" for i in range(3)]
    lines = printed(spectra_named(names), 80)
    shown = [line for line in lines if line.startswith("model.")]
    assert len(set(shown)) == 3
    assert all("…" in line and len(line) <= 80 for line in lines if line.startswith("model."))


def test_the_command_sends_nothing_of_a_stranger_to_the_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    run = tmp_path / "\x1b[31mrun"
    spectra_named(STRANGE_NAMES[:4]).save(run)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        commands.show(run)
        commands.plot([run], "svg")
        lines = stream.getvalue().splitlines()
        assert all(line.isprintable() for line in lines)
        assert "seed            \\x1b[31m$\\frac{$" in lines
        assert "note            \\x1b[2J tied" in lines


def test_a_manifest_without_settings_or_notes_is_shown(tmp_path, capsys):
    for manifest in ({}, {"config": [1], "notes": 5}, {"config": None, "notes": "text"}):
        Spectra(spectra_named(["w"]).values(), manifest).save(tmp_path)
        commands.show(tmp_path)
        Spectra.load(tmp_path).plot(tmp_path / "a.png")
        assert capsys.readouterr().out.startswith("block")
    account = {"products": 1, "ceiling": 5, "stopped_by": "\x1b[31m", "not_reached": ["\x1b[2J"]}
    Spectra(spectra_named(["w"]).values(), {"adaptive": {"blocks": {"w": account}}}).save(tmp_path)
    commands.show(tmp_path)
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_an_unknown_block_is_answered_with_some_names():
    spectra = spectra_named([*STRANGE_NAMES])
    with pytest.raises(KeyError) as caught:
        spectra["\x1b[0m"]
    assert len(str(caught.value)) < 1500
    assert "x1b[31mred" in str(caught.value)


def test_half_a_character_is_no_name():
    with pytest.raises(ConfigurationError, match="half a character"):
        spectra_named(["\udc80"])
