"""The entropy of single tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from zoo_entries import entry

from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.plateau import plateau
from hvp_engine.losses import IGNORE


def test_tokens_of_equal_frequency_have_the_logarithm_of_their_number() -> None:
    tokens = torch.arange(60).reshape(3, 20) % 5
    text = replace(entry(), data=lambda _: Batches([], lambda: itertools.repeat(tokens), []))
    assert plateau(text, 0) == pytest.approx(math.log(5))


def test_only_what_is_predicted_counts() -> None:
    inputs = torch.zeros(2, 4, dtype=torch.int64)
    targets = torch.tensor([[IGNORE, 1, 1, IGNORE], [2, IGNORE, 1, IGNORE]])
    text = replace(entry(), data=lambda _: Batches([], lambda: itertools.repeat((inputs, targets)), []))
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert plateau(text, 0) == pytest.approx(expected)


def test_what_bert_takes_adds_the_cost_of_its_answers_on_pairs_of_sentences() -> None:
    labels = torch.tensor([[IGNORE, 1, 1, IGNORE], [2, IGNORE, 1, IGNORE]])
    batch = {"input_ids": torch.zeros_like(labels), "labels": labels}
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    for answers, more in ((None, 0.0), ([0, 1], math.log(2)), ([1, 1], 0.0)):
        asked = batch if answers is None else {**batch, "next_sentence_label": torch.tensor(answers)}
        text = replace(entry(), data=lambda _, asked=asked: Batches([], lambda: itertools.repeat(asked), []))
        assert plateau(text, 0) == pytest.approx(expected + more)
