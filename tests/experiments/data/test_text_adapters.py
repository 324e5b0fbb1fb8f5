"""Texts from the user's files: nanoGPT's tokens, a text file, Cornell's dialogues, Alpaca's instructions."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data import dialogue, text
from hvp_engine.experiments.data.alpaca import instructions
from hvp_engine.experiments.data.source import Source


def write_cornell(folder: Path) -> None:
    (folder / "movie_lines.txt").write_text(
        "L1 +++$+++ u0 +++$+++ m0 +++$+++ BIANCA +++$+++ They do not!\n"
        "L2 +++$+++ u2 +++$+++ m0 +++$+++ CAMERON +++$+++ They do to, caf\xe9!\n"
        "L3 +++$+++ u0 +++$+++ m0 +++$+++ BIANCA +++$+++ \n",
        encoding="latin-1",
    )
    (folder / "movie_conversations.txt").write_text(
        "u0 +++$+++ u2 +++$+++ m0 +++$+++ ['L1', 'L2', 'L3']\nu0 +++$+++ u2 +++$+++ m0 +++$+++ ['L2', 'L1']\n"
    )


def test_cornells_conversations_are_sequences_of_turns_without_empty_ones(tmp_path: Path) -> None:
    write_cornell(tmp_path)
    spoken = dialogue.conversations({"cornell": tmp_path})
    assert spoken.held_out == (("They do not!", "They do to, café!"),)
    assert spoken.train == (("They do to, café!", "They do not!"),)
    corpus = text.characters("dialogue", {"cornell": tmp_path})
    assert "".join(corpus.symbols[i] for i in corpus.train.tolist()) == "They do to, café!\nThey do not!"


def test_a_malformed_line_of_cornell_is_named(tmp_path: Path) -> None:
    write_cornell(tmp_path)
    with (tmp_path / "movie_lines.txt").open("a") as file:
        file.write("L4 +++$+++ u0\n")
    with pytest.raises(ConfigurationError, match=r"Line 4 of .*movie_lines\.txt has 2 fields and not 5"):
        dialogue.conversations({"cornell": tmp_path})
    (tmp_path / "movie_lines.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"There is no movie_lines\.txt"):
        dialogue.conversations({"cornell": tmp_path})


def test_half_of_the_pairs_are_a_turn_with_its_reply() -> None:
    spoken = [("a0", "a1", "a2"), ("b0", "b1"), ("c0",)]
    pairs = list(islice(dialogue.sentence_pairs(spoken, seed=0), 1000))
    replies = {("a0", "a1"), ("a1", "a2"), ("b0", "b1")}
    assert all((pair.first, pair.second) in replies for pair in pairs if pair.follows)
    assert 400 < sum(pair.follows for pair in pairs) < 600
    assert any((pair.first, pair.second) not in replies for pair in pairs if not pair.follows)
    assert pairs[:10] == list(islice(dialogue.sentence_pairs(spoken, seed=0), 10))
    with pytest.raises(ConfigurationError, match="No conversation has two turns"):
        next(dialogue.sentence_pairs([("alone",)], seed=0))


def test_a_text_file_is_held_out_from_its_last_tenth(tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text("abc" * 30)
    corpus = text.characters("shakespeare", {"shakespeare": file})
    assert (corpus.vocabulary, corpus.symbols) == (3, "abc")
    assert (len(corpus.train), len(corpus.held_out)) == (81, 9)
    assert corpus.train[:4].tolist() == [0, 1, 2, 0]
    assert text.byte_text("shakespeare", {"shakespeare": file}).train[:3].tolist() == [97, 98, 99]


def test_nanogpts_tokens_are_opened_with_their_validation_file(tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    np.arange(50_000, 50_200, dtype=np.uint16).tofile(file)
    corpus = text.openwebtext({"openwebtext": file})
    assert (len(corpus.train), len(corpus.held_out), corpus.vocabulary) == (180, 20, 50_304)
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "val.bin")
    corpus = text.openwebtext({"openwebtext": file})
    assert (len(corpus.train), len(corpus.held_out)) == (200, 10)
    assert next(corpus.batches(2, 8, seed=0)).min() >= 50_000
    assert torch.equal(corpus.first(1, 4), torch.tensor([[50_000, 50_001, 50_002, 50_003]]))


def test_a_file_of_odd_length_has_no_16_bit_tokens(tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    file.write_bytes(b"abc")
    with pytest.raises(ConfigurationError, match="is no file of 16-bit tokens"):
        text.openwebtext({"openwebtext": file})


def test_alpacas_instructions_become_texts(tmp_path: Path) -> None:
    file = tmp_path / "alpaca_data.json"
    file.write_text(json.dumps([
        {"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Greet.", "input": "", "output": "Hi"},
    ]))  # fmt: skip
    texts = instructions({"alpaca": file}).texts
    assert texts[0] == "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3\n"
    assert texts[1] == "### Instruction:\nGreet.\n\n### Response:\nHi\n"
    file.write_text('{"a": 1}')
    with pytest.raises(ConfigurationError, match="is no list of objects with instruction, input and output"):
        instructions({"alpaca": file})


def test_every_tenth_text_of_tokenized_ones_is_held_out() -> None:
    class Tokenizer:
        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[int(text)] for text in texts]}

        def __len__(self) -> int:
            return 30

    corpus = text.tokenized([str(n) for n in range(12)], Tokenizer(), Source("made", "none", "here", "0"))
    assert corpus.held_out.tolist() == [0, 10]
    assert corpus.train.tolist() == [*range(1, 10), 11]
    assert corpus.vocabulary == 30


def test_a_text_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no such text as 'bible'; choose one of shakespeare, dialogue"):
        text.characters("bible")


def test_a_trained_tokenizer_has_the_vocabulary_that_was_asked_for_and_gives_texts_back() -> None:
    tokenizer = dialogue.wordpiece(["to be or not to be"] * 5, vocabulary=40)
    assert len(tokenizer) <= 40
    ids = tokenizer("To be or not")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ##", "") == "to be or not"
    assert tokenizer("zzz")["input_ids"] == [tokenizer.unk_token_id]
