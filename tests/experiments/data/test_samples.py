"""Labelled inputs: drawn without repetition, in batches that are functions of the seed."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.images import gaussian
from hvp_engine.experiments.data.pixels import normalised
from hvp_engine.experiments.data.samples import Samples


def numbered(count: int = 10) -> Samples:
    return Samples(torch.arange(count).float().view(count, 1), torch.arange(count))


def test_inputs_stay_with_their_labels() -> None:
    drawn = numbered().draw(6, seed=3)
    assert torch.equal(drawn.inputs.view(-1).long(), drawn.labels)
    assert len(set(drawn.labels.tolist())) == 6


def test_an_epoch_has_every_sample_once() -> None:
    batches = list(islice(numbered().batches(5, seed=0), 4))
    for epoch in (batches[:2], batches[2:]):
        assert sorted(label for batch in epoch for label in batch.labels.tolist()) == list(range(10))
    assert not torch.equal(torch.cat([b.labels for b in batches[:2]]), torch.cat([b.labels for b in batches[2:]]))


def test_the_seed_decides_the_order() -> None:
    first, again, other = (next(numbered().batches(5, seed)).labels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_left_over_of_an_epoch_is_dropped() -> None:
    sizes = [len(batch.labels) for batch in islice(numbered().batches(4, seed=0), 6)]
    assert sizes == [4] * 6


def test_more_samples_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ConfigurationError, match="10 samples, too few for 11"):
        numbered().draw(11, seed=0)
    with pytest.raises(ConfigurationError, match="10 samples, too few for a batch of 11"):
        next(numbered().batches(11, seed=0))


def test_gaussian_inputs_lie_around_the_offset_means_of_their_classes() -> None:
    samples = gaussian(classes=3, features=20, count=6000, seed=0, offset=5.0, spread=0.1)
    assert abs(float(samples.inputs.mean()) - 5.0) < 0.5
    for label in range(3):
        assert float(samples.inputs[samples.labels == label].std(dim=0).mean()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(gaussian(3, 20, 10, 0).inputs, gaussian(3, 20, 10, 0).inputs)
    assert not torch.equal(gaussian(3, 20, 10, 0).inputs, gaussian(3, 20, 10, 1).inputs)


def test_imagenets_mean_becomes_zero_and_its_deviation_one() -> None:
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    picture = (mean + deviation).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(normalised(picture), torch.ones(1, 3, 2, 2))
