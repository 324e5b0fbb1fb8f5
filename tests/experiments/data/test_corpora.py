"""Token ids of texts: what is drawn, what is held out, and what is too short."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.corpus import Corpus, standard_library
from hvp_engine.experiments.data.source import Source

SOURCE = Source("made", "none", "here", "0")


def counting(tokens: int = 100) -> Corpus:
    return Corpus(torch.arange(tokens), torch.arange(1000, 1000 + tokens), SOURCE, 2000)


def test_the_same_seed_draws_the_same_batches_and_another_seed_others() -> None:
    first, again, other = (list(islice(counting().batches(4, 8, seed), 3)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])


def test_sequences_are_contiguous_and_int64() -> None:
    batch = next(counting().batches(4, 8, 0))
    assert batch.shape == (4, 8)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, batch[:, :1] + torch.arange(8))


def test_held_out_sequences_come_from_the_held_out_text() -> None:
    sequences = counting().sequences(5, 10)
    assert sequences.min() == 1000
    assert sequences.max() == 1099


def test_the_first_tokens_are_cut_in_order() -> None:
    assert torch.equal(counting().first(2, 5), torch.arange(10).view(2, 5))


@pytest.mark.parametrize("draw", ["first", "batch", "sequences"])
def test_a_text_that_is_too_short_is_refused(draw: str) -> None:
    corpus = counting(10)
    calls = {
        "first": lambda: corpus.first(3, 5),
        "batch": lambda: corpus.batch(3, 10, torch.Generator()),
        "sequences": lambda: corpus.sequences(3, 10),
    }
    with pytest.raises(ConfigurationError, match=r"has 10 tokens: too few .* give a longer one\."):
        calls[draw]()


def test_16_bit_tokens_are_drawn_as_int64() -> None:
    corpus = Corpus(torch.arange(50_000, 50_100).to(torch.uint16), torch.arange(5), SOURCE, 50_304)
    assert next(corpus.batches(2, 4, 0)).min() >= 50_000


def test_the_standard_library_says_where_it_comes_from() -> None:
    corpus = standard_library()
    assert corpus.vocabulary == 256
    assert corpus.source.described()["licence"] == "PSF-2.0"
    assert len(corpus.train) > 5 * len(corpus.held_out) > 0
