"""The small net whose Hessian is known exactly: its data, its whole matrix, and what lies in its neurons' blocks."""

from __future__ import annotations

from hvp_engine import losses
from hvp_engine.api import dense
from hvp_engine.blocks import rows
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data import cifar, idx, images
from hvp_engine.experiments.data.samples import Images
from hvp_engine.experiments.exact import FloatArray, IntArray, positions, random_energy_share
from hvp_engine.experiments.heterogeneity import energy_share
from hvp_engine.experiments.models.two_layer import LAYERS, TwoLayer
from hvp_engine.experiments.registry import Setting

WIDTH = 8
Shares = dict[str, float]


def pictures(setting: Setting) -> Images:
    """Return the data: MNIST or CIFAR-100 where their path is given, else the digits of scikit-learn.

    Raises:
        ConfigurationError: The paper's size is asked for without a path.
    """
    if "mnist" in setting.data:
        return idx.mnist(setting.data)
    if "cifar100" in setting.data:
        return cifar.cifar("cifar100", setting.data)
    if setting.size == "paper":
        raise ConfigurationError(
            "The exact net at the paper's size needs data; give --data mnist=DIR or --data cifar100=DIR."
        )
    return images.digits()


def network(setting: Setting, data: Images, seed: int) -> TwoLayer:
    """Make the net of a seed at its initialisation."""
    return TwoLayer(data.train.inputs[0].numel(), WIDTH, len(data.classes), seed).to(setting.device)


def hessian(setting: Setting, net: TwoLayer, data: Images) -> FloatArray:
    """Form the whole Hessian over all training data, in float64 but at the paper's size."""
    precision = setting.precision if setting.size == "paper" else "fp64"
    found = dense(net, losses.classification, "full", data=[data.train], precision=precision)
    return found["full"].numpy(force=True)


def neurons(net: TwoLayer) -> list[IntArray]:
    """Return where the incoming weights of every neuron stand in the vector of all parameters, layer by layer."""
    return [group for name in LAYERS for group in positions(net, LAYERS, rows(net, name))]


def shares(net: TwoLayer, matrix: FloatArray) -> Shares:
    """Measure which share of its energy a Hessian has in its neurons' blocks: whole, by layer, at random."""
    layers = {name: positions(net, LAYERS, rows(net, name)) for name in LAYERS}
    everywhere = neurons(net)
    own = {}
    for name, groups in layers.items():
        first, last = groups[0][0], groups[-1][-1] + 1
        own[name] = energy_share(matrix[first:last, first:last], [group - first for group in groups])
    return {"whole": energy_share(matrix, everywhere), "random": random_energy_share(matrix, everywhere), **own}
