"""D14: Post-LN networks are more heterogeneous than Pre-LN ones (arXiv 2502.00213, abstract of its third version).

In Post-LN, x <- LN(x + f(x)), the Jacobian of every LayerNorm multiplies the whole path upstream, in Pre-LN,
x <- x + f(LN(x)), that of the branch only. Weights are drawn as Glorot does in both: with a deviation of 0.02 at
narrow width the branches add almost nothing to a normalised stream, and the two do not differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.experiments import figures
from hvp_engine.experiments.norm_places import LAYERS, PLACES, ROLES, Norms, Place, entries, width
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least
from hvp_engine.experiments.tensors import STEPS, column, facts
from hvp_engine.experiments.zoo_plan import planned_spectra

Found = Mapping[str, Mapping[Place, Sequence[Norms]]]  # by task, one per seed
_COLUMNS = ("task", "network", "spread", "max/min over layers", "Gini", "lambda_max, max/min of 6")
_SOURCE = "arXiv 2502.00213v3, abstract; bounds measured here"


def run(setting: Setting) -> Result:
    """Measure gradients layer by layer in both kinds of network, for masked text and for photographs."""
    networks, seeds = entries(setting), range(setting.seeds)
    ready(setting, [entry for pair in networks.values() for entry in pair.values()])
    found = {
        task: {place: [Norms.measured(setting, entry, seed) for seed in seeds] for place, entry in pair.items()}
        for task, pair in networks.items()
    }
    rows: list[tuple[Cell, ...]] = []
    for task, pair in networks.items():
        for place, entry in pair.items():
            norms = found[task][place]
            six = [column(facts(setting, entry, seed), "curvature") for seed in seeds]
            measured = [[one.spread for one in norms], [one.over_layers for one in norms], [one.gini for one in norms]]
            measured.append([max(values) / min(values) for values in six])
            rows.append((task, f"{place}-LN", *(float(np.mean(values)) for values in measured)))
    settings = {"layers": LAYERS, "width": width(setting), "weights": "Xavier-uniform", "lanczos steps": STEPS}
    data = {task: pair["post"].data(0).source for task, pair in networks.items()}
    return Result(Table(_COLUMNS, tuple(rows)), claims(found, setting), _draw(found), {**settings, "data": data})


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the call for six tensors of each network, d 768; gradients cost less than one of its 20 products."""
    return [
        planned_spectra(
            setting, entry, setting.seeds, what=f"{task}, {place}-LN: 6 tensors, {setting.seeds} seeds", steps=STEPS,
            probes=1,
        )
        for task, pair in entries(setting).items()
        for place, entry in pair.items()
    ]  # fmt: skip


def claims(found: Found, setting: Setting) -> tuple[Claim, ...]:
    """Decide by the smaller ratio of the tasks, for every seed."""
    bound = 1.15 if setting.size == "tiny" else 1.25
    pairs = [list(zip(places["post"], places["pre"], strict=True)) for places in found.values()]
    spreads = np.min([[post.spread / pre.spread for post, pre in pair] for pair in pairs], axis=0)
    ranges = np.min([[post.over_layers / pre.over_layers for post, pre in pair] for pair in pairs], axis=0)
    return (
        at_least(f"spread of Post-LN >= {bound} x Pre-LN", "ratio", spreads.tolist(), bound, _SOURCE),
        at_least("max/min over layers of Post-LN >= 2 x Pre-LN", "ratio", ranges.tolist(), 2.0, _SOURCE),
    )


def _draw(found: Found) -> Figure:
    with figures.style():
        figure, axes = figures.page(len(found), len(ROLES), 7.0, 1.4 * len(found) + 0.3, sharex=True, sharey="row")
        for across, (task, places) in zip(axes, found.items(), strict=True):
            for ax, role in zip(across, ROLES, strict=True):
                lines = {f"{p}-LN": (range(LAYERS), [norms.of(role) for norms in places[p]]) for p in PLACES}
                figures.curves(ax, lines)
                ax.set(yscale="log", title=f"{task}: {role}", xlabel="layer")
                if ax is not axes[0, 0]:
                    ax.get_legend().remove()
            across[0].set_ylabel("gradient norm")
    return figure
