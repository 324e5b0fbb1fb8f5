"""A Trainer of transformers with a SpectrumCallback: the same training, and numbers wherever it reports to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.integrations import hugging_face
from hvp_engine.integrations.hugging_face import SpectrumCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

TOKENS = torch.randint(0, 11, (12, 7), generator=torch.Generator().manual_seed(3))
DATASET = [{"input_ids": row, "labels": row} for row in TOKENS]
PROBE = [{"input_ids": TOKENS[:3], "labels": TOKENS[:3]}]


class Reporter(TrainerCallback):
    """What TensorBoard's, W&B's and MLflow's callbacks do, which come before a user's."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append((state.global_step, dict(logs)))


def trainer(out: Path, *, measured: bool, reporter: Reporter | None = None, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    settings = {
        "output_dir": str(out / "trainer"),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
    }
    made = Trainer(
        model,
        TrainingArguments(**settings | arguments),
        train_dataset=DATASET,
        callbacks=[reporter] if reporter else None,
    )
    if measured:
        made.add_callback(
            SpectrumCallback(made, he.losses.causal_lm, PROBE, every=2, steps=4, probes=1, out=out / "spectra")
        )
    return made


def curve(made: Trainer) -> list[dict[str, float]]:
    losses = [entry for entry in made.state.log_history if "loss" in entry]
    return [{key: value for key, value in entry.items() if not key.startswith("hessian")} for entry in losses]


def measured_steps(made: Trainer) -> list[int]:
    return [entry["step"] for entry in made.state.log_history if "hessian/largest" in entry]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_course_of_a_training_has_the_same_bits(bf16: bool, tmp_path: Path) -> None:
    reporter = Reporter()
    plain = trainer(tmp_path / "plain", measured=False, bf16=bf16)
    plain.train()
    measured = trainer(tmp_path / "measured", measured=True, reporter=reporter, bf16=bf16)
    measured.train()
    assert len(curve(plain)) == 4
    assert curve(plain) == curve(measured)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, measured.model.state_dict()[name]), name
    assert measured_steps(measured) == [0, 2, 4]
    assert [step for step, logs in reporter.logs if "hessian/largest" in logs] == [0, 2, 4]
    last = next(logs for step, logs in reporter.logs if step == 2 and "hessian/largest" in logs)
    assert last["hessian/two_over_lr"] == pytest.approx(400.0)  # the rate fell linearly, to half of 0.01 by then
    assert "hessian/preconditioned_largest" in last
    assert sorted(path.name for path in (tmp_path / "measured" / "spectra").iterdir()) == [
        "step-000000",
        "step-000002",
        "step-000004",
    ]


def test_a_training_resumed_from_a_checkpoint_goes_on_in_its_folder(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = trainer(tmp_path, measured=True, **saving)
    first.train()
    manifest = tmp_path / "spectra" / "step-000004" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    again = trainer(tmp_path, measured=True, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    assert measured_steps(again) == [0, 2, 4]  # the first two from the checkpoint's history
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize("other", ["model", None])
def test_what_is_no_trainer_is_refused(other: Any) -> None:
    given = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2)) if other == "model" else other
    with pytest.raises(ConfigurationError, match="trainer is of type .*give the Trainer of transformers itself"):
        SpectrumCallback(given, he.losses.causal_lm, PROBE, every=2)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = importlib.util.spec_from_file_location("without_transformers", hugging_face.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ConfigurationError, match=r"its extra \[hf\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
