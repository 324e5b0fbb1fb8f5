"""D14: Post-LN networks are more heterogeneous than Pre-LN ones (arXiv 2502.00213, abstract of its third version).

In Post-LN, x <- LN(x + f(x)), the Jacobian of every LayerNorm multiplies the whole path upstream, in Pre-LN,
x <- x + f(LN(x)), that of the branch only. Weights are drawn as Glorot does in both: with a deviation of 0.02 at
narrow width the branches add almost nothing to a normalised stream, and the two do not differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import nn

from hvp_engine.experiments import figures
from hvp_engine.experiments.entry import Blocks, Entry, Recipe, seeded
from hvp_engine.experiments.heterogeneity import gini, gradient_norms, spread
from hvp_engine.experiments.models.huggingface import library
from hvp_engine.experiments.models.patches import PatchConfig, ViT
from hvp_engine.experiments.paper_plan import PlannedPart, planned_slq
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.roles import layer_of, role_of
from hvp_engine.experiments.small_zoo import small_zoo
from hvp_engine.experiments.tensors import STEPS, column, facts, network

Place = Literal["post", "pre"]
PLACES: tuple[Place, ...] = ("post", "pre")
LAYERS = 12
ROLES = ("query", "key", "value", "output", "fc1", "fc2")
_SOURCE = "arXiv 2502.00213v3, abstract; bounds measured here"
_CONTEXT = 64
Norms = Mapping[str, float]  # of the gradient, by parameter
Found = Mapping[str, Mapping[Place, list[Norms]]]  # by task, one per seed


def run(setting: Setting) -> Result:
    """Measure gradients layer by layer in both kinds of network, for masked text and for photographs."""
    began = time.perf_counter()
    networks = entries(setting)
    found: dict[str, dict[Place, list[Norms]]] = {
        task: {place: [_norms(setting, entry, seed) for seed in range(setting.seeds)] for place, entry in pair.items()}
        for task, pair in networks.items()
    }
    rows: list[tuple[str | float, ...]] = []
    for task, pair in networks.items():
        for place, entry in pair.items():
            seeds = found[task][place]
            six = [column(facts(setting, entry, seed), "curvature") for seed in range(setting.seeds)]
            numbers = (
                [spread(list(norms.values())) for norms in seeds],
                [over_layers(norms) for norms in seeds],
                [gini(list(norms.values())) for norms in seeds],
                [max(values) / min(values) for values in six],
            )
            rows.append((task, f"{place}-LN", *(float(np.mean(values)) for values in numbers)))
    with figures.style():
        figure, axes = figures.page(len(found), len(ROLES), 7.0, 1.4 * len(found) + 0.3, sharex=True, sharey="row")
        for across, (task, places) in zip(axes, found.items(), strict=True):
            for ax, role in zip(across, ROLES, strict=True):
                lines = {f"{p}-LN": (range(LAYERS), [_by_layer(norms, role) for norms in places[p]]) for p in PLACES}
                figures.curves(ax, lines)
                ax.set(yscale="log", title=f"{task}: {role}", xlabel="layer")
            across[0].set_ylabel("gradient norm")
    columns = ("task", "network", "spread", "max/min over layers", "Gini", "lambda_max, max/min of 6")
    settings = {"layers": LAYERS, "width": _width(setting), "weights": "Xavier-uniform", "lanczos steps": STEPS}
    seconds = {"all": time.perf_counter() - began}
    return Result(Table(columns, tuple(rows)), claims(found, setting), figure, settings, seconds)


def entries(setting: Setting) -> dict[str, dict[Place, Entry]]:
    """Make the networks of both tasks, Post-LN and Pre-LN; at size tiny of masked text only."""
    zoo = small_zoo(setting if setting.size == "tiny" else replace(setting, size="small"))
    bert, width = zoo["bert"], _width(setting)
    vocabulary = bert.meta().get_input_embeddings().num_embeddings  # type: ignore[operator]
    tasks: dict[str, tuple[Entry, dict[Place, partial[Any]]]]
    tasks = {"masked text": (bert, {place: partial(_text_network, vocabulary, width, place) for place in PLACES})}
    if setting.size != "tiny":
        config = PatchConfig(32, 4, 3, 17, width=width, layers=LAYERS, heads=width // 16)
        tasks["photographs"] = (
            zoo["vit-photographs"],
            {place: partial(ViT, config, place) for place in PLACES},
        )
    return {
        task: {
            place: Entry(
                f"layernorm-{base.name}-{place}", "transformer", seeded(partial(_xavier, make)), base.loss, base.data,
                Recipe(steps=0, batch=0), choose=six_tensors,
            )
            for place, make in makers.items()
        }
        for task, (base, makers) in tasks.items()
    }  # fmt: skip


def six_tensors(model: nn.Module) -> Blocks:
    """Name values and first MLP layers of the first, the middle and the last layer."""
    names = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    chosen = (0, LAYERS // 2, LAYERS - 1)
    return {n: [n] for n in names if role_of(n) in ("value", "fc1") and layer_of(n) in chosen}


def over_layers(norms: Norms) -> float:
    """Return by how much the largest gradient over layers exceeds the smallest: the geometric mean over roles."""
    ratios = [max(of_role) / min(of_role) for of_role in (_by_layer(norms, role) for role in ROLES)]
    return float(np.exp(np.mean(np.log(ratios))))


def claims(found: Found, setting: Setting) -> tuple[Claim, ...]:
    """Decide by the smaller ratio of the tasks, for every seed."""
    bound = 1.15 if setting.size == "tiny" else 1.25
    pairs = [list(zip(places["post"], places["pre"], strict=True)) for places in found.values()]
    spreads = [[spread(list(a.values())) / spread(list(b.values())) for a, b in pair] for pair in pairs]
    ranges = [[over_layers(a) / over_layers(b) for a, b in pair] for pair in pairs]
    return (
        at_least(f"spread of Post-LN >= {bound} x Pre-LN", "ratio", np.min(spreads, axis=0).tolist(), bound, _SOURCE),
        at_least(
            "max/min over layers of Post-LN >= 2 x Pre-LN", "ratio", np.min(ranges, axis=0).tolist(), 2.0, _SOURCE
        ),
    )


def _norms(setting: Setting, entry: Entry, seed: int) -> Norms:
    """Return the gradient norms of the layers' weight matrices."""
    model = network(setting, entry, seed)
    found = gradient_norms(model, entry.loss, entry.data(seed).fixed)
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    return {n: norm for n, norm in found.items() if n in matrices and layer_of(n) is not None and role_of(n) in ROLES}


def _by_layer(norms: Norms, role: str) -> list[float]:
    return [norm for name, norm in norms.items() if role_of(name) == role]


def _text_network(vocabulary: int, width: int, place: Place) -> nn.Module:
    transformers = library()
    padding = vocabulary  # an id of its own: RoBERTa gives padding no position
    name = "Roberta" if place == "post" else "RobertaPreLayerNorm"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=vocabulary + 1, hidden_size=width, num_hidden_layers=LAYERS, num_attention_heads=width // 16,
        intermediate_size=4 * width, max_position_embeddings=padding + _CONTEXT + 1, type_vocab_size=1,
        pad_token_id=padding, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: nn.Module = getattr(transformers, f"{name}ForMaskedLM")(config)
    return model


def _xavier(make: Callable[[], nn.Module]) -> nn.Module:
    model = make()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return model


def _width(setting: Setting) -> int:
    return 768 if setting.size == "paper" else 64


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the call for six tensors of each network, d 768; gradients cost less than one of its 20 products."""
    return [
        planned_slq(
            f"{task}, {place}-LN: 6 tensors, {setting.seeds} seeds", entry.meta(), entry.loss, entry.blocks,
            entry.data(0).fixed, steps=STEPS, probes=1, runs=setting.seeds, precision=setting.precision,
        )
        for task, pair in entries(setting).items()
        for place, entry in pair.items()
    ]  # fmt: skip
