"""What a model must not be or carry, told from its modules and parameters without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.system.formatting import first_names
from hvp_engine.system.torch_private import hooks_of_tensor, is_flattened

# By name: importing what defines them takes longer than most checks, and other packages have their own.
_DDP = "DistributedDataParallel"
_SHARDING = frozenset(("FullyShardedDataParallel", "FSDPModule"))
_WRAPPERS = _SHARDING | {_DDP, "DataParallel", "ShardedDataParallel", "DeepSpeedEngine", "PipelineParallel"}


@dataclass(frozen=True)
class Obstacle:
    """Something that makes products wrong.

    Attributes:
        code: Short name, for the doctor's report.
        message: What it is, and what it does.
        fix: What to do about it.
        module: Where it is; None for the whole model.
    """

    code: str
    message: str
    fix: str
    module: str | None = None

    def __str__(self) -> str:
        """Return cause and fix."""
        return f"{self.message} {self.fix[0].upper()}{self.fix[1:]}."


def obstacles(model: nn.Module) -> Iterator[Obstacle]:
    """Yield wrappers for several processes or GPUs, hooks on gradients, and embeddings that change when they are read.

    Args:
        model: The caller's model.
    """
    yield from parted(model)
    for name, module in model.named_modules():
        wrapper = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS), None)
        if wrapper is not None and wrapper not in _SHARDING:
            yield _distributed(wrapper, name)
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            yield Obstacle(
                "embedding-max-norm",
                f"The embedding {name or type(module).__name__!r} has max_norm={module.max_norm:g}: its forward pass "
                "shortens the rows that it reads, so that the loss changes the parameters it is evaluated at.",
                "shorten the rows once (torch.renorm(weight, norm_type, 0, max_norm)) and set max_norm to None",
                name,
            )
    hooked = [name for name, parameter in model.named_parameters() if hooks_of_tensor(parameter)]
    if hooked:
        yield Obstacle(
            "gradient-hook",
            f"Gradient hooks are registered on {first_names(hooked)}: what they change is no gradient of the loss, and "
            "its derivative is no Hessian.",
            "remove the hooks (handle.remove()), and compute a mask or scale in the forward pass instead; those of "
            "wandb.watch go by wandb.unwatch(model), and wandb.watch(model, log='parameters') registers none",
        )


def parted(model: nn.Module) -> Iterator[Obstacle]:
    """Yield what shows that this process holds parts of the parameters alone: wrappers, and the parameters themselves.

    Args:
        model: The caller's model, or what a training strategy made of it.
    """
    for name, module in model.named_modules():
        sharding = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _SHARDING), None)
        if sharding is not None:
            yield _gathered(f"The model is wrapped in {sharding}{f' ({name})' if name else ''}", name or None)
    ways = {name: way for name, parameter in model.named_parameters() if (way := _parted_by(parameter)) is not None}
    for way in dict.fromkeys(ways.values()):
        names = [name for name in ways if ways[name] == way]
        yield _gathered(f"The parameters {first_names(names)} are shared out by {way}", None)


def refuse(found: Iterator[Obstacle]) -> None:
    """Refuse a model for the first of its :func:`obstacles`, or of those that are :func:`parted` alone.

    Raises:
        ConfigurationError: There is one; the message has its cause and the fix.
    """
    obstacle = next(found, None)
    if obstacle is not None:
        raise ConfigurationError(str(obstacle))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, whose hooks second backward passes would not run; else itself.

    For jobs that share streams and data among processes themselves.
    """
    inside = getattr(model, "module", None)
    return inside if type(model).__name__ == _DDP and isinstance(inside, nn.Module) else model


def _parted_by(parameter: Tensor) -> str | None:
    """Say what shares a parameter out among processes; None where it is whole."""
    if any(kind.__name__ == "DTensor" for kind in type(parameter).__mro__):
        return "DTensor (tensor parallelism, or FSDP2)"
    if hasattr(parameter, "ds_id"):
        return "DeepSpeed's stage 3"
    return "FullyShardedDataParallel" if is_flattened(parameter) else None


def _gathered(what: str, module: str | None) -> Obstacle:
    """Make the obstacle of parameters in parts."""
    return Obstacle(
        "distributed-wrapper",
        f"{what}: every process holds a part of each parameter and gathers it for one backward pass, so that a second "
        "backward pass through the gradient, of which Hessian-vector products are made, finds parts alone.",
        "gather the weights (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict="
        "True) and load them into the plain module, which every process needs whole",
        module,
    )


def _distributed(wrapper: str, name: str) -> Obstacle:
    place = f" ({name})" if name else ""
    ways = "pass the module inside (model.module, with all of its parameters) and all the data"
    return Obstacle(
        "distributed-wrapper",
        f"The model is wrapped in {wrapper}{place}: this process would compute the product of its own share of the "
        "data or of the parameters alone, and report it as that of all.",
        f"{ways}; or call slq with distributed='auto' in every process, with all the data" if wrapper == _DDP else ways,
        name or None,
    )
