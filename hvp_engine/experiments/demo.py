"""The demo: train a small byte-level GPT on this machine, then look at its Hessian block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hvp_engine import losses
from hvp_engine.api import slq
from hvp_engine.experiments.data.corpus import Corpus, standard_library
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.problem.randomness import fixed_numbers
from hvp_engine.results.spectra import Spectra
from hvp_engine.system.files import prove_writable
from hvp_engine.system.progress import ProgressReporter

CONFIG = GPTConfig(vocabulary=256, context=64, layers=4, heads=4, width=64)
_TRAINING_STEPS = 400
_TRAINING_BATCH = 32
_SEQUENCES = 32
_TOLERANCE = 0.02


def train(corpus: Corpus, progress: bool | None) -> tuple[GPT, float]:
    """Train the demo's model with AdamW and a cosine schedule.

    Args:
        corpus: The text.
        progress: True shows progress, False hides it, None shows it on a terminal.

    Returns:
        The model in eval mode and its last training loss in nats per byte.
    """
    with fixed_numbers():
        model = GPT(CONFIG)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=_TRAINING_STEPS, pct_start=0.1)
    loss = torch.tensor(0.0)
    with ProgressReporter("train", _TRAINING_STEPS, progress) as reporter:
        for _ in range(_TRAINING_STEPS):
            total, weight = losses.causal_lm(model, corpus.batch(_TRAINING_BATCH, CONFIG.context, generator))
            loss = total / weight
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            reporter.advance(1, f"loss {float(loss.detach()):.3f} nats per byte")
    return model.eval(), float(loss.detach())


def job(corpus: Corpus) -> dict[str, Any]:
    """Put together the demo's arguments for :func:`hvp_engine.slq`: loss, blocks, data and tolerance.

    It takes a ninth of the products of 100 steps and 10 probes, and as long as 40 steps and 2 probes would.
    """
    return {
        "loss": losses.causal_lm,
        "blocks": {**paper_blocks(CONFIG), "full": ["*"]},
        "data": list(torch.split(corpus.sequences(_SEQUENCES, CONFIG.context), 16)),
        "tolerance": _TOLERANCE,
    }


def run(out: Path, progress: bool | None) -> Spectra:
    """Train, compute the spectra of all blocks and of the full Hessian on held-out text, write figures.

    Args:
        out: Run folder; receives the results, ``spectra.png`` and ``js_distance.png``.
        progress: True shows progress, False hides it, None shows it on a terminal.

    Returns:
        The spectra.

    Raises:
        RunFolderError: The folder holds another run, or cannot be written.
    """
    prove_writable(out)  # before minutes of training
    corpus = standard_library()
    model, _ = train(corpus, progress)
    spectra = slq(model, progress=progress, out=out, **job(corpus))
    spectra.plot(out / "spectra.png")
    spectra.plot_js(out / "js_distance.png")
    return spectra
