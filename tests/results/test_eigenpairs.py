"""Eigenpairs as results: saved, read, cut into parameters, drawn, and refused where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.eigenpairs import Effort, Eigenpairs, Piece
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.system.run_files import read_manifest, write_run


def pairs(name: str = "b", vectors: bool = True) -> Eigenpairs:
    stored = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))[0].T.contiguous()
    return Eigenpairs(
        name,
        7,
        "LM",
        np.array([-1.0, 2.0, 4.0]),
        np.array([1e-4, 5e-3, 4e-3]),
        1e-3,
        4.0,
        Effort(30, 21, "noise"),
        (Piece("w", (2, 3)), Piece("scale", ())),
        stored if vectors else None,
    )


def test_what_is_saved_is_read_to_the_bit(tmp_path: Path) -> None:
    Eigensystem([pairs(), pairs("c", vectors=False)], {"config": {"job": "eigsh"}}).save(tmp_path)
    found = Eigensystem.load(tmp_path)
    assert found.manifest == {"config": {"job": "eigsh"}} and list(found) == ["b", "c"]
    assert torch.equal(found["b"].vectors, pairs().vectors) and found["b"].record() == pairs().record()
    assert found["b"].pieces == pairs().pieces and found["c"].stored is None
    with pytest.raises(ConfigurationError, match="2 blocks"):
        Eigenpairs.load(tmp_path)
    pairs().save(tmp_path)
    assert torch.equal(Eigenpairs.load(tmp_path).vectors, pairs().vectors)


def test_those_within_the_tolerance_have_converged() -> None:
    assert pairs().converged.tolist() == [True, False, True]
    text = Eigensystem([pairs()]).summary()
    assert "2 of 3" in text and "noise" in text and "5.000e-03" in text


def test_vectors_are_cut_into_parameters() -> None:
    cut = pairs().by_parameter()
    assert {name: tuple(tensor.shape) for name, tensor in cut.items()} == {"w": (3, 2, 3), "scale": (3,)}
    assert torch.equal(torch.cat([cut["w"].flatten(1), cut["scale"][:, None]], 1), pairs().vectors)
    with pytest.raises(ConfigurationError, match="vectors=True"):
        pairs(vectors=False).by_parameter()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_drawn(tmp_path: Path, suffix: str) -> None:
    pairs().plot(tmp_path / f"one.{suffix}")
    Eigensystem([pairs(f"block {i} $_") for i in range(5)]).plot(tmp_path / f"five.{suffix}")
    assert all((tmp_path / f"{name}.{suffix}").stat().st_size > 1000 for name in ("one", "five"))


def test_figures_have_scales_shared_ranges_and_axes_of_the_caller() -> None:
    system = Eigensystem([pairs("a"), pairs("b")])
    first, second = (axes for axes in system.plot(scale="symlog", share_y=True).axes if axes.axison)
    assert first.get_yscale() == "symlog" and first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[0] < -1.0 and first.get_ylim()[1] > 4.0
    log = system.plot(scale="log", blocks="b").axes[0]
    below = [line for line in log.lines if line.get_marker() == "v"]
    assert log.get_yscale() == "log" and [line.get_ydata().tolist() for line in below] == [[1.0]]
    axes = Figure().subplots()
    assert pairs().plot(ax=axes) is axes and axes.get_title() == "b" and axes.get_ylabel() == "eigenvalue"
    with pytest.raises(ConfigurationError, match="1 axes, but the figure has 2 panels"):
        system.plot(ax=axes)
    with pytest.raises(ConfigurationError, match="none of the blocks"):
        system.plot(blocks=["c"])


@pytest.mark.parametrize(
    "change",
    [
        {"values": []},
        {"numel": 8},
        {"numel": 2},
        {"pieces": [["w", [2, "x"]]]},
        {"pieces": [["w", [-7]]]},
        {"vectors": "int8"},
        {"size": "large"},
        {"name": ""},
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, change: dict) -> None:
    pairs().save(tmp_path)
    document = read_manifest(tmp_path)
    block = {**document["blocks"][0], **change}
    write_run(tmp_path, {"run": {}, "blocks": [block]}, {"b/values": np.zeros(3), "b/residuals": np.zeros(3)})
    with pytest.raises(RunFolderError, match="is damaged"):
        Eigensystem.load(tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pairs().save(tmp_path)
    block = read_manifest(tmp_path)["blocks"][0]
    tensors = {"b/values": np.full(3, np.nan), "b/residuals": np.zeros(3), "b/vectors": pairs().vectors}
    write_run(tmp_path, {"run": {}, "blocks": [block]}, tensors)
    with pytest.raises(RunFolderError, match="not finite"):
        Eigensystem.load(tmp_path)


def test_names_are_told_apart() -> None:
    with pytest.raises(ConfigurationError, match="Two blocks have the name 'b'"):
        Eigensystem([pairs(), pairs()])
    with pytest.raises(ConfigurationError, match="no eigenpairs"):
        Eigensystem([])
    with pytest.raises(KeyError, match="none of the blocks b"):
        Eigensystem([pairs()])["x"]
    json.dumps(Eigensystem([pairs()]).record())
