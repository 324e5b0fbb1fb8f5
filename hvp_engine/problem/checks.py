"""Models, losses and data that cannot be a job, refused before any work."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from hvp_engine.errors import ConfigurationError, NonDeterministicError
from hvp_engine.problem.loss_signature import check_loss
from hvp_engine.problem.obstacles import obstacles, refuse
from hvp_engine.problem.reading import check_data
from hvp_engine.system.formatting import first_names
from hvp_engine.system.torch_private import BATCH_NORMS, DROPOUTS

# The packages of PyTorch's modules that compute with integers.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def check_module(model: object) -> None:
    """Raise ConfigurationError unless the model is a module."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model must be a torch.nn.Module, not {type(model).__name__}.")


def check_ingredients(model: nn.Module, loss: object, data: object) -> None:
    """Refuse what cannot be a job, whatever it computes.

    Raises:
        ConfigurationError: The model is no module, has parameters without a shape, is wrapped for several processes,
            has hooks on gradients or embeddings with max_norm; or the loss is none.
        ObjectiveError: The data is one batch, no collection of batches, or can be read only once.
        NonDeterministicError: A BatchNorm layer is in train mode.
    """
    check_module(model)
    check_loss(loss, takes_batch=data is not None)
    tensors = (*model.named_parameters(), *model.named_buffers())
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ConfigurationError(
            f"The model has parameters that have no shape yet ({first_names(lazy)}): run it on one batch first, which "
            "initialises lazy modules."
        )
    refuse(obstacles(model))
    _refuse_batchnorm(model)
    check_data(data)


def refuse_unusable(model: nn.Module) -> None:
    """Refuse a model that cannot be differentiated, whatever the loss.

    Raises:
        ConfigurationError: The model is on the meta device, was made in inference mode, or has quantised modules.
    """
    quantised = [
        name or type(m).__name__ for name, m in model.named_modules() if type(m).__module__.startswith(_QUANTISED)
    ]
    if quantised:
        raise ConfigurationError(
            f"The model has quantised modules ({first_names(quantised)}): they round to integers and have no "
            "derivative, so that nothing before them would have one. Use the model as it was before quantisation."
        )
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ConfigurationError(
            'The model is on the "meta" device, so it has shapes and no numbers; load its weights, or use '
            "hvp_engine.plan, which needs none."
        )
    if any(tensor.is_inference() for tensor in tensors):
        raise ConfigurationError(
            "The model was made under torch.inference_mode(), so it cannot be differentiated; make or load it outside."
        )


def active_dropout(model: nn.Module) -> list[str]:
    """List the dropout layers that draw random numbers: in train mode, with a probability above 0."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, DROPOUTS) and module.training and module.p > 0
    ]


def training_batchnorm(model: nn.Module) -> list[str]:
    """List the BatchNorm layers in train mode: their loss depends on how the data is split."""
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.training
    ]


def _refuse_batchnorm(model: nn.Module) -> None:
    training = training_batchnorm(model)
    if training:
        raise NonDeterministicError(
            f"BatchNorm is in train mode in {first_names(training)}: its loss "
            "depends on how the data is split and every evaluation changes its statistics. Call model.eval()."
        )
