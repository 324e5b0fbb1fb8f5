"""F3: kinds of parameters of a trained Transformer differ in sharpness (arXiv 2502.19002): Emb, QK, FFN, VO, Norm.

The sharpness of a kind is the trace of its diagonal block over its number of parameters. The paper's order Emb < QK <
FFN < VO < Norm needs a large vocabulary and an untied head; with some 80 characters, each used in every step, the
embedding is the sharpest, so what is decided is {QK, FFN} < {VO, Norm}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from hvp_engine.api import trace
from hvp_engine.experiments import figures
from hvp_engine.experiments.cache import INIT, STAGES, checkpoint, folder
from hvp_engine.experiments.entry import Blocks, Entry
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least
from hvp_engine.experiments.roles import role_of
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

KINDS = {
    "Emb": ("embedding",), "QK": ("query", "key"), "FFN": ("fc1", "fc2"), "VO": ("value", "output"), "Norm": ("norm",),
}  # fmt: skip
_SOURCE = "arXiv 2502.19002; bound measured here"
_STEPS = {"tiny": 8, "small": 1000, "paper": 50_000}
_PRODUCTS = {"tiny": 8, "small": 40, "paper": 100}
_RATE = 3e-3
Sharpness = Mapping[str, float]  # by kind


def run(setting: Setting) -> Result:
    """Train a GPT per seed, and measure every kind at every stage."""
    entry, stages = trained_gpt(setting), (INIT, *STAGES[setting.size])
    found = [[sharpness(setting, entry, stage, seed) for stage in stages] for seed in range(setting.seeds)]
    steps = [0.0 if stage == INIT else float(stage) * entry.recipe.steps for stage in stages]
    by_kind = {kind: np.array([[at[kind] for at in seed] for seed in found]) for kind in KINDS}
    with figures.style():
        figure, axes = figures.page(1, 1, 3.2, 2.4)
        figures.curves(axes[0, 0], {kind: (steps, values) for kind, values in by_kind.items()}, bars=True)
        axes[0, 0].set(yscale="log", xlabel="step", ylabel="trace / parameters")
        axes[0, 0].legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (kind, *(float(np.mean(values[:, i])) for i in range(len(stages))), float(np.std(values[:, -1])))
        for kind, values in by_kind.items()
    )
    settings = {"steps": entry.recipe.steps, "rate": _RATE, "optimizer": "adam", "products": _PRODUCTS[setting.size]}
    return Result(
        Table(("kind", *(f"after {step:g} steps" for step in steps), "sd at the end"), rows),
        claims([seed[-1] for seed in found]),
        figure,
        {**settings, "data": entry.data(0).source},
        notes=("The full order of the paper is not decided: vocabulary and head are not as it needs them.",),
    )


def trained_gpt(setting: Setting) -> Entry:
    """Return the zoo's GPT with one block per kind, trained for 1,000 steps at one rate."""
    entry = zoo(setting)["gpt"]
    recipe = replace(entry.recipe, steps=setting.option("steps", _STEPS[setting.size]))
    rates = {"adam": (_RATE,)}
    return replace(entry, name=f"gpt-{recipe.steps}", recipe=recipe, rates=rates, choose=kinds)


def kinds(model: nn.Module) -> Blocks:
    """Gather the parameters of every kind; position embeddings belong to none."""
    names = [name for name, _ in model.named_parameters() if "wpe" not in name]
    return {kind: [name for name in names if role_of(name) in roles] for kind, roles in KINDS.items()}


def sharpness(setting: Setting, entry: Entry, stage: str, seed: int) -> Sharpness:
    """Return the trace of every kind's block over its parameters."""
    model = checkpoint(setting, entry, stage, seed)
    found = trace(
        model, entry.loss, entry.blocks, data=entry.data(seed).fixed, products=_PRODUCTS[setting.size], seed=seed,
        precision=setting.precision, out=folder(setting, "traces") / f"{entry.name}-{stage}-{seed}",
    )  # fmt: skip
    return {kind: estimate.value / found.numel[kind] for kind, estimate in found.items()}


def claims(last: list[Sharpness]) -> tuple[Claim, ...]:
    """Decide at the end of training, for every seed."""
    ratios = [min(at["VO"], at["Norm"]) / max(at["QK"], at["FFN"]) for at in last]
    return (at_least("min(VO, Norm) >= 2 x max(QK, FFN) after training", "ratio", ratios, 2.0, _SOURCE),)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the training of 50,000 steps and the traces at all stages."""
    entry = trained_gpt(setting)
    runs = setting.seeds * (1 + len(STAGES[setting.size]))
    return [
        planned_curves(setting, entry, ("adam",)),
        planned_spectra(setting, entry, runs, what="traces", steps=_PRODUCTS["paper"], probes=1),
    ]
