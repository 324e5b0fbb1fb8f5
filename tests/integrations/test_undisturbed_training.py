"""A training takes the same course, to the bit, with a SpectrumLogger and without it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from trainings import LOSS, OPTIONS, PROBE, Course, bf16, network, samples, train

from hvp_engine.integrations import SpectrumLogger

HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "autocast": {"arithmetic": bf16},
    "accumulated": {"accumulated": 2},
}


def measured(course: Course) -> list[int]:
    assert course.logger is not None
    return list(course.logger.history)


@pytest.mark.parametrize("how", sorted(HOW))
def test_the_course_of_a_training_has_the_same_bits(how: str, tmp_path: Path) -> None:
    with_logger = train({**OPTIONS, "blocks": "parameter", "out": tmp_path / "spectra"}, **HOW[how])
    assert measured(with_logger) == [0, 2, 4]
    assert with_logger.same(train(None, **HOW[how]))


def test_courses_that_differ_are_told_apart() -> None:
    assert not train(None).same(train(None, rate=2e-2))


def test_a_compiled_network_is_measured_uncompiled_and_trained_as_before() -> None:
    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="aot_eager")  # whose graphs have no second derivative, as inductor's

    with_logger = train({**OPTIONS, "every": 4}, wrap=compiled)
    assert measured(with_logger) == [0, 4]
    assert with_logger.same(train(None, wrap=compiled))


@pytest.fixture
def alone_in_a_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
def test_a_network_of_data_parallelism_is_measured_unwrapped_and_trained_as_before() -> None:
    with_logger = train(OPTIONS, wrap=DistributedDataParallel)
    assert measured(with_logger) == [0, 2, 4]
    assert with_logger.same(train(None, wrap=DistributedDataParallel))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a measurement must leave: identities, contents and how often tensors were written to."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return {
        "tensors": [(id(t), t._version, t.detach().clone()) for t in (*parameters, *buffers)],
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in parameters],
        "flags": [p.requires_grad for p in parameters] + [m.training for m in model.modules()],
        "attributes": [list(vars(m)) for m in model.modules()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "random": [random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()],
        "modes": [torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.get_default_dtype()],
        "threads": [torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()],
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("grad", [True, False])
def test_a_measurement_leaves_everything_as_it_was(grad: bool) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(2):
        F.cross_entropy(model(samples(8, 1)[0]), samples(8, 1)[1]).backward()
        optimizer.step()
    model[0].bias.grad = None  # and the others have one
    logger = SpectrumLogger(model, LOSS, PROBE, **OPTIONS)
    with bf16(), torch.set_grad_enabled(grad):
        before = state_of(model, optimizer)
        found = logger.step(2, optimizer)
        after = state_of(model, optimizer)
    assert found is not None and "hessian/preconditioned_largest" in found
    assert [key for key in before if not same(before[key], after[key])] == []
    assert model[0].bias.grad is None


def test_modes_are_set_without_calling_train_or_eval() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            raise AssertionError("adapters are merged")

    model = nn.Sequential(nn.Dropout(0.5), Merging(6, 3))
    assert SpectrumLogger(model, LOSS, PROBE, **OPTIONS).step(0) is not None
    assert [module.training for module in model.modules()] == [True] * 3


def test_a_loader_that_shares_its_generator_with_the_probe_takes_the_same_course() -> None:
    def orders(*, is_measured: bool) -> list[list[float]]:
        generator = torch.Generator().manual_seed(0)
        training = DataLoader(TensorDataset(*samples(12, 1)), batch_size=4, shuffle=True, generator=generator)
        probe = DataLoader(TensorDataset(*samples(6, 2)), batch_size=3, generator=generator)
        logger = SpectrumLogger(network(), LOSS, probe, every=1, steps=2, probes=1, check=False)
        found = []
        for epoch in range(2):
            if is_measured:
                assert logger.step(epoch) is not None
            found += [inputs[:, 0].tolist() for inputs, _ in training]
        return found

    assert orders(is_measured=True) == orders(is_measured=False)
