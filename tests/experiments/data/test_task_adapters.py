"""The papers' text tasks, each from a few lines as they are distributed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.glue import glue


def write_jsonl(folder: Path, rows: list[dict[str, object]]) -> None:
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_entailment_is_read_from_superglues_lines(tmp_path: Path) -> None:
    rows = [
        {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment", "idx": 0},
        {"premise": "It rained.", "hypothesis": "It was dry.", "label": "not_entailment", "idx": 1},
    ]
    write_jsonl(tmp_path, rows)
    task = glue("rte", {"rte": tmp_path})
    assert task.test.texts == ("It rained.", "It rained.")
    assert task.test.seconds == ("It was wet.", "It was dry.")
    assert task.test.labels.tolist() == [0, 1]


def test_the_training_file_is_cut_after_nine_tenths(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"premise": str(n), "hypothesis": "", "label": "neutral"} for n in range(20)])
    task = glue("cb", {"cb": tmp_path})
    assert task.train.texts == tuple(map(str, range(18)))
    assert len(task.test.texts) == 20
    assert task.train.labels.tolist() == [2] * 18


def test_words_in_context_become_the_papers_question(tmp_path: Path) -> None:
    row = {"word": "place", "sentence1": "Do you want to come over to my place?", "sentence2": "A political system.",
           "label": False}  # fmt: skip
    write_jsonl(tmp_path, [row])
    task = glue("wic", {"wic": tmp_path})
    assert task.test.texts[0] == (
        "Do you want to come over to my place? A political system. Does place have the same meaning in both sentences?"
    )
    assert task.test.seconds == ()
    assert task.test.labels.tolist() == [0]


def test_questions_have_their_passage(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"question": "is it", "passage": "It is.", "label": True}])
    task = glue("boolq", {"boolq": tmp_path})
    assert (task.test.texts, task.test.seconds, task.test.labels.tolist()) == (("is it",), ("It is.",), [1])


def test_acceptability_is_a_table_without_titles(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text('gj04\t1\t\tThe sailors rode "the breeze.\ngj04\t0\t*\tThem is.\n')
    task = glue("cola", {"cola": tmp_path})
    assert task.test.texts == ('The sailors rode "the breeze.', "Them is.")
    assert task.test.labels.tolist() == [1, 0]


def test_feelings_are_a_table_with_titles(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\nhide new secretions \t0\n")
    assert glue("sst2", {"sst2": tmp_path}).test.labels.tolist() == [0]


def test_paraphrases_are_read_from_microsofts_files(tmp_path: Path) -> None:
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        (tmp_path / name).write_text(
            '﻿Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "no.\tNo, he said.\n', encoding="utf-8"
        )
    task = glue("mrpc", {"mrpc": tmp_path})
    assert (task.test.texts, task.test.seconds) == (('He said "no.',), ("No, he said.",))
    assert task.test.labels.tolist() == [1]


def test_a_folder_saved_by_datasets_is_read_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_dict.json").write_text("{}")
    rows = [{"sentence1": "a", "sentence2": "b", "label": 1}]
    saved = SimpleNamespace(load_from_disk=lambda folder: {"train": rows, "validation": rows})
    monkeypatch.setitem(sys.modules, "datasets", saved)
    for name in ("rte", "mrpc"):
        task = glue(name, {name: tmp_path})
        assert (task.test.texts, task.test.seconds, task.test.labels.tolist()) == (("a",), ("b",), [1])


def test_a_folder_saved_by_datasets_needs_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_dict.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match="pip install datasets"):
        glue("rte", {"rte": tmp_path})


def test_what_is_missing_or_malformed_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no task 'squad'; choose one of boolq"):
        glue("squad", {})
    with pytest.raises(ConfigurationError, match="--data rte=PATH"):
        glue("rte", {})
    with pytest.raises(ConfigurationError, match=r"There is no train\.jsonl and no train\.tsv in"):
        glue("rte", {"rte": tmp_path})
    write_jsonl(tmp_path, [{"premise": "a", "label": "entailment"}])
    with pytest.raises(ConfigurationError, match="has not the fields of rte"):
        glue("rte", {"rte": tmp_path})
    write_jsonl(tmp_path, [{"premise": "a", "hypothesis": "b", "label": "maybe"}])
    with pytest.raises(ConfigurationError, match="has not the fields of rte"):
        glue("rte", {"rte": tmp_path})
