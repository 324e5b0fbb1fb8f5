"""Speeches of Shakespeare's plays as a pre-trained network sees them, with the speaker as their class."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from hvp_engine.experiments import weights
from hvp_engine.experiments.data.dialogue import speeches
from hvp_engine.experiments.data.plays import play_files
from hvp_engine.experiments.data.samples import Samples
from hvp_engine.experiments.registry import Setting

_TOKENS = 24
_BATCH = 64
_TEXTS = 2000
_MODEL = "minilm"


def sources(setting: Setting) -> dict[str, object]:
    """Say where the speeches and the weights come from, for a manifest."""
    _, plays = play_files("speeches", setting.data)
    return {"data": {"speeches": plays.described()}, "weights": {_MODEL: weights.source(_MODEL, setting).described()}}


@torch.no_grad()
def speaker_features(setting: Setting, classes: int) -> Samples:
    """Compute MiniLM's features of speeches by those who speak most often.

    Args:
        setting: Paths of data and weights.
        classes: How many speakers.

    Returns:
        Last hidden states of the first token (speeches, 384), 2,000 speeches shared out evenly, and who speaks.

    Raises:
        ConfigurationError: The plays or MiniLM are not there.
    """
    spoken = speeches(setting.data)
    most = [speaker for speaker, _ in Counter(speech.speaker for speech in spoken).most_common(classes)]
    numbers = {speaker: number for number, speaker in enumerate(most)}
    left = dict.fromkeys(most, max(1, _TEXTS // classes))
    texts, labels = [], []
    for speech in spoken:
        if left.get(speech.speaker, 0) > 0:
            left[speech.speaker] -= 1
            texts.append(speech.text)
            labels.append(numbers[speech.speaker])
    model = weights.load(_MODEL, setting)
    tokenizer = weights.tokenizer(_MODEL, setting)
    features: list[Tensor] = []
    for start in range(0, len(texts), _BATCH):
        piece = texts[start : start + _BATCH]
        encoded = tokenizer(piece, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt")
        features.append(model(**encoded).last_hidden_state[:, 0])
    return Samples(torch.cat(features), torch.tensor(labels))
