"""A Trainer of Lightning with a SpectrumCallback: the same training, and numbers in its loggers."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainings import LOSS, PROBE, network, samples

from hvp_engine.errors import ConfigurationError
from hvp_engine.integrations import lightning as integration
from hvp_engine.integrations.lightning import SpectrumCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

STEPS = 4


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.losses: list[float] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(out: Path, callbacks: list[Any], steps: int = STEPS, **arguments: Any) -> tuple[Module, pl.Trainer]:
    torch.manual_seed(0)
    module = Module()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(out, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=callbacks,
        **arguments,
    )
    trainer.fit(module, DataLoader(TensorDataset(*samples(40, 5)), batch_size=4, shuffle=True))
    return module, trainer


def callback(out: Path) -> SpectrumCallback:
    return SpectrumCallback(LOSS, PROBE, every=2, steps=4, probes=1, out=out / "spectra")


@pytest.mark.parametrize("arguments", [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}])
def test_the_course_of_a_training_has_the_same_bits(arguments: dict[str, Any], tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", [], **arguments)
    measuring = callback(tmp_path)
    measured, trainer = fit(tmp_path / "measured", [measuring], **arguments)
    assert plain.losses == measured.losses
    assert len(plain.losses) == STEPS * arguments.get("accumulate_grad_batches", 1)
    for one, other in zip(plain.state_dict().values(), measured.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert list(measuring.logger.history) == [0, 2, 4]
    with open(tmp_path / "measured" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["hessian/largest"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    assert float(rows[1]["hessian/two_over_lr"]) == pytest.approx(200.0)
    assert rows[1]["hessian/preconditioned_largest"]
    largest = measuring.logger.history[4]["hessian/largest"]
    assert float(trainer.callback_metrics["hessian/largest"]) == pytest.approx(largest)


def test_a_training_begun_again_reads_what_was_measured(tmp_path: Path) -> None:
    fit(tmp_path, [callback(tmp_path)], steps=2)
    manifest = tmp_path / "spectra" / "step-000002" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    again = callback(tmp_path)
    fit(tmp_path, [again])
    assert list(again.logger.history) == [0, 2, 4]
    assert manifest.stat().st_mtime_ns == before


def test_of_several_processes_none_decides_by_numbers_that_the_first_one_has() -> None:
    module = Module()
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(model=module),
        world_size=2,
        global_step=0,
        optimizers=[],
        loggers=[],
        callback_metrics={},
    )
    measuring = SpectrumCallback(LOSS, PROBE, every=2, steps=4, probes=1)
    measuring.on_train_start(trainer, module)
    assert list(measuring.logger.history) == [0]
    assert trainer.callback_metrics == {}


def test_a_strategy_that_shares_parameters_out_is_refused() -> None:
    module = Module()
    wrapper = type("FullyShardedDataParallel", (nn.Sequential,), {})(module)
    trainer = SimpleNamespace(strategy=SimpleNamespace(model=wrapper), global_step=7)
    with pytest.raises(ConfigurationError, match="every process holds a part"):
        SpectrumCallback(LOSS, PROBE, every=2).on_train_start(trainer, module)


def test_the_base_class_is_that_of_the_package_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert integration._callback_class() is pl.Callback
    other = SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", other)
    assert integration._callback_class() is other.Callback


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=r"its extra \[lightning\]"):
        integration._callback_class()
