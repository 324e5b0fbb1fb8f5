"""Batches of a seed: the same again for the same seed, disjoint draws, both orders of text."""

from __future__ import annotations

from itertools import islice

import torch

from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.data.samples import Images, Samples
from hvp_engine.experiments.data.source import Source
from hvp_engine.experiments.tasks import Amounts, on_images, on_masked_text, on_text
from hvp_engine.losses import IGNORE

SOURCE = Source("made up", "none", "this test", "0")
TEXT = Corpus(torch.arange(4000) % 7, torch.arange(500) % 7, SOURCE, 7)


def images() -> Images:
    def part(first: int, count: int) -> Samples:
        numbers = torch.arange(first, first + count)
        return Samples(numbers.float().reshape(-1, 1, 1, 1), numbers % 3)

    return Images(part(0, 100), part(1000, 40), ("a", "b", "c"), SOURCE)


def equal(one, other) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_images_are_drawn_by_seed_and_keep_their_classes() -> None:
    amounts = Amounts(fixed=20, microbatch=8, training=10, held_out=12)
    one, again, other = (on_images(images(), amounts, seed) for seed in (0, 0, 1))
    assert [len(inputs) for inputs, _ in one.fixed] == [8, 8, 4]
    for inputs, labels in (*one.fixed, *one.held_out, *islice(one.training(), 3)):
        assert torch.equal(inputs.flatten().long() % 3, labels)
    assert equal(one.fixed, again.fixed)
    assert not equal(one.fixed, other.fixed)
    assert equal(islice(one.training(), 3), islice(one.training(), 3))
    assert all(bool((inputs >= 1000).all()) for inputs, _ in one.held_out)
    assert one.source["name"] == "made up"


def test_the_fixed_batch_is_not_the_first_training_batch() -> None:
    batches = on_images(images(), Amounts(fixed=10, microbatch=10, training=10, held_out=12), 0)
    assert not torch.equal(batches.fixed[0][0], next(batches.training())[0])


def test_text_is_drawn_at_random_or_taken_from_the_start() -> None:
    random = on_text(TEXT, Amounts(6, 4, 3, 5, length=11), 0)
    assert [tuple(batch.shape) for batch in random.fixed] == [(4, 11), (2, 11)]
    assert [tuple(batch.shape) for batch in random.held_out] == [(4, 11), (1, 11)]
    assert next(random.training()).shape == (3, 11)
    first = on_text(TEXT, Amounts(6, 6, 3, 5, length=11, order="first"), 0)
    assert torch.equal(first.fixed[0].flatten(), TEXT.train[:66].long())


def test_masked_text_predicts_more_in_training_and_in_shorter_sequences() -> None:
    amounts = Amounts(64, 32, 64, 16, length=20, trained_length=10)
    batches = on_masked_text(TEXT, amounts, 0.1, 0.5, 0)
    inputs, targets = next(batches.training())
    assert inputs.shape == targets.shape == (64, 10)
    assert 0.4 < float((targets != IGNORE).float().mean()) < 0.6
    fixed = torch.cat([targets for _, targets in batches.fixed])
    assert fixed.shape == (64, 20)
    assert 0.05 < float((fixed != IGNORE).float().mean()) < 0.15
    assert int(torch.cat([inputs for inputs, _ in batches.fixed]).max()) == TEXT.vocabulary  # the mask's id
    again = on_masked_text(TEXT, amounts, 0.1, 0.5, 0)
    assert equal(batches.fixed, again.fixed)
    assert equal(islice(batches.training(), 2), islice(again.training(), 2))
