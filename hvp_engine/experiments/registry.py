"""The drivers by name: what each claims, how long it takes, what it needs; and the setting that one runs in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from hvp_engine.errors import ConfigurationError

if TYPE_CHECKING:
    from hvp_engine.problem.precision import Precision

Size = Literal["tiny", "small", "paper"]
Value = TypeVar("Value", int, float, str)

EXTRA = "experiments"  # scikit-learn, SciPy, transformers and the packages that carry data
WEIGHTS = "experiments-weights"  # the packages that carry pre-trained weights
ZOO_OPTIONS = ("bn", "order", "tokens", "steps", "m", "probes")  # what models, spectra and trainings of the zoo read
_TRAINED = ("bn", "order", "tokens", "steps")  # the models at all stages, with steps and probes of the driver's own
_AT_INIT = ("bn", "order", "tokens", "m", "probes")  # spectra of models that are not trained
_ON_IMAGES = ("bn", "steps", "m", "probes")


@dataclass(frozen=True)
class Driver:
    """What the list of drivers says of one.

    Attributes:
        name: As the command takes it, ``js-heatmaps``.
        id: As the papers' list numbers it, ``D4``.
        claim: What it checks, in one line.
        module: Its file in ``experiments/drivers/``, without the suffix.
        minutes: At size small, three seeds, two idle cores, after those above it, whose spectra and trainings it reads
            where it needs the same; alone it pays for these too.
        needs: Extras of this package that it needs.
        options: Keys that ``--set`` may give it.
        reads: Data of packages that it cannot do without at size small, :data:`.data.packages.PACKAGES`: the list names
            them, and they are looked for before the first of many drivers. What else it reads, :func:`.ready.ready` in
            its ``run`` finds missing.
        loads: Pre-trained weights that it cannot do without at size small, likewise.
        instead: Options, and names of data, that put others in the place of what it reads; with one of them given,
            ``reads`` says nothing.
    """

    name: str
    id: str
    claim: str
    module: str
    minutes: float
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What a driver is asked to do.

    Attributes:
        size: ``"small"`` for two cores, ``"paper"`` for the papers' sizes; ``"tiny"`` is for tests, seconds.
        seeds: How many; they are 0, 1, ...
        out: Folder of the driver; the caches shared by all are in ``out.parent / "cache"``.
        data: Paths of data sets by name.
        weights: Paths of pre-trained weights by name.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Arithmetic of the products, as for :func:`hvp_engine.slq`.
        options: What ``--set`` overrides, as text.
    """

    size: Size
    seeds: int
    out: Path
    data: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"
    precision: Precision = "fp32"
    options: Mapping[str, str] = field(default_factory=dict)

    def option(self, key: str, default: Value) -> Value:
        """Return what ``--set`` gives for ``key``, in the type of ``default``; that where it gives nothing.

        Raises:
            ConfigurationError: The text is no value of that type.
        """
        if key not in self.options:
            return default
        try:
            return type(default)(self.options[key])
        except ValueError:
            raise ConfigurationError(
                f"Option --set {key}={self.options[key]} is no {type(default).__name__}; give one, for instance "
                f"--set {key}={default}."
            ) from None


DRIVERS: tuple[Driver, ...] = (
    Driver(
        "full-spectra", "D1", "Full spectra of CNNs and Transformers look alike.", "full_spectra",
        18.0, (EXTRA,), ZOO_OPTIONS, reads=("digits", "shakespeare"),
    ),
    Driver(
        "exact-mlp", "D2", "The exact Hessian of a small MLP is near block-diagonal.", "exact_mlp",
        0.2, (EXTRA,), reads=("digits",), instead=("mnist", "cifar100"),
    ),
    Driver(
        "four-blocks", "D3", "Blocks of a Transformer differ in their spectra, those of a CNN do not.", "four_blocks",
        7.0, (EXTRA,), ZOO_OPTIONS, reads=("digits", "shakespeare"),
    ),
    Driver(
        "js-heatmaps", "D4", "JS distances between blocks are far larger in Transformers than in CNNs.", "js_heatmaps",
        1.5, (EXTRA,), _AT_INIT, reads=("digits", "shakespeare"),
    ),
    Driver(
        "scaled-mlp", "D5", "SGD degrades as an MLP's blocks are made to differ, Adam hardly.", "scaled_mlp",
        0.5, (EXTRA,), ("steps", "m", "probes"), reads=("digits",),
    ),
    Driver(
        "mlp-mixer", "D6", "An MLP-mixer has blocks that differ, without attention.", "mlp_mixer",
        6.0, (EXTRA,), _ON_IMAGES, reads=("digits", "photographs"),
    ),
    Driver(
        "pretrained-lm", "D7", "Pre-training makes blocks alike and SGD's gap to Adam small.", "pretrained_lm",
        6.0, (EXTRA,), ("model", "target", "steps", "m", "probes"), reads=("shakespeare", "bbcnews"),
        instead=("model", "target"),
    ),
    Driver(
        "js-against-gap", "D8", "The larger JS0, the larger SGD's gap to Adam.", "js_against_gap",
        4.5, (EXTRA,), (*ZOO_OPTIONS, "model", "target"), reads=("digits", "shakespeare", "bbcnews"),
        instead=("model", "target"),
    ),
    Driver(
        "quadratics", "D9", "On quadratics Adam is fast only where blocks differ.", "quadratics",
        0.1, (EXTRA,), _AT_INIT, reads=("digits", "shakespeare"),
    ),
    Driver("constant-r", "D10", "r <= 1000 with probability of at least 2/3.", "constant_r", 0.1, (EXTRA,)),
    Driver(
        "sgd-against-adam", "D11", "SGD is on par with Adam on CNNs and behind it on Transformers.",
        "sgd_against_adam", 4.5, (EXTRA,), ("steps",), reads=("digits", "photographs", "shakespeare"),
    ),
    Driver(
        "curvature-against-gradient", "D12", "Largest eigenvalue and gradient norm of tensors are correlated.",
        "curvature_against_gradient", 7.0, (EXTRA, WEIGHTS), ("models", "bn"), reads=("bbcnews",),
        instead=("models",),
    ),
    Driver(
        "gini", "D13", "Gradient norms are spread more unevenly over Transformers than over CNNs.", "gini",
        1.0, (EXTRA, WEIGHTS), ("models", "bn"), reads=("digits", "shakespeare", "bbcnews"),
    ),
    Driver(
        "layernorm-place", "D14", "Post-LN is more heterogeneous than Pre-LN.", "layernorm_place", 5.0, (EXTRA,),
        ("order",), reads=("photographs", "shakespeare"), instead=("cornell",),
    ),
    Driver(
        "fine-tuning", "D15", "Adam and sign methods fine-tune Transformers better than SGD.", "fine_tuning",
        18.0, (EXTRA, WEIGHTS), ("text", "schedule", "clip", "epsilon", "batch", "steps"),
        reads=("tweets", "photographs"), loads=("minilm", "efficientnet-lite0"), instead=("text",),
    ),
    Driver(
        "slq-accuracy", "D16", "SLQ's density and its errors are right.", "slq_accuracy",
        1.0, (EXTRA,), reads=("digits",),
    ),
    Driver(
        "complexity", "D17", "Gradient-weighted curvature exceeds size-weighted curvature in Transformers.",
        "complexity", 15.0, (EXTRA,), _TRAINED, reads=("digits", "shakespeare"),
    ),
    Driver(
        "head-growth", "D18", "Without momentum, sign methods let a head of many classes grow.", "head_growth",
        1.0, (EXTRA,),
    ),
    Driver(
        "when-adam-loses", "D20", "Adam's preconditioner helps the more, the nearer a matrix is to diagonal.",
        "when_adam_loses", 0.3, (EXTRA,),
    ),
    Driver(
        "adam-mini", "F1", "The Hessian's blocks are heads in q and k and rows elsewhere.", "adam_mini",
        2.5, (EXTRA,), reads=("shakespeare",),
    ),
    Driver(
        "many-classes", "F2", "Off-diagonal blocks of neurons fade as the number of classes grows.", "many_classes",
        0.2, (EXTRA,),
    ),
    Driver(
        "sharpness-disparity", "F3", "Norms and VO are sharper than QK and FFN in a trained GPT.",
        "sharpness_disparity", 3.0, (EXTRA,), ("order", "tokens", "steps"), reads=("shakespeare",),
    ),
    Driver(
        "edge-of-stability", "F4", "Full-batch gradient descent trains at the edge of stability.",
        "edge_of_stability", 2.0, (EXTRA,), reads=("digits",),
    ),
    Driver(
        "outliers", "F5", "A spectrum has an outlier per class; BatchNorm suppresses them.", "outliers",
        4.0, (EXTRA,), reads=("digits",),
    ),
    Driver(
        "class-structure", "F6", "Curvature of a class's row of the head follows the class's frequency.",
        "class_structure", 0.5, (EXTRA,), reads=("digits",),
    ),
    Driver(
        "off-diagonal-strength", "F7", "What blocks leave out of Hv is what their energy share says.",
        "off_diagonal_strength", 0.5, (EXTRA,), _TRAINED, reads=("digits", "shakespeare"),
    ),
)  # fmt: skip


def find(name: str) -> Driver:
    """Return the driver of a name, or of an id such as ``D4``.

    Raises:
        ConfigurationError: There is none.
    """
    for driver in DRIVERS:
        if name in (driver.name, driver.id):
            return driver
    near = difflib.get_close_matches(name, [driver.name for driver in DRIVERS], n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigurationError(
        f"There is no experiment {name!r}{meant} The command hvp-engine experiment lists all of them."
    )
