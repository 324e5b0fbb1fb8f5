"""What a process has of its own that a library must leave as it found it."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FUNCTIONS = {"F": F, "torch": torch, "Tensor": torch.Tensor, "Module": nn.Module, "autograd": torch.autograd}
ATTENTION = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled", "cudnn_sdp_enabled")
ANSWERS = {  # what PyTorch says of itself
    "grad mode": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "anomaly mode": torch.is_anomaly_enabled,
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "threads": torch.get_num_threads,
    "matmul precision": torch.get_float32_matmul_precision,
    "autocast": lambda: [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
    "autocast cache": torch.is_autocast_cache_enabled,
    "function modes": torch._C._len_torch_function_stack,
    "dispatch modes": torch._C._len_torch_dispatch_stack,
    **{name: getattr(torch.backends.cuda, name) for name in ATTENTION},
    "cudnn": lambda: [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")],
    "mkldnn": lambda: torch.backends.mkldnn.enabled,
    "precisions": lambda: [
        torch.backends.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
    ],
}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def generators() -> dict[str, str]:
    """The states of all generators of random numbers."""
    state = np.random.get_state(legacy=True)
    return {
        "torch": digest(torch.get_rng_state().numpy().tobytes()),
        "python": digest(repr(random.getstate()).encode()),
        "numpy": digest(repr([state[0], np.asarray(state[1]).tolist(), *state[2:]]).encode()),
    }


def snapshot() -> dict[str, Any]:
    """Everything that can be asked for without changing it, to be compared with ``==``."""
    hooks = {
        name: len(getattr(nn.modules.module, name))
        for name in dir(nn.modules.module)
        if name.startswith("_global_") and hasattr(getattr(nn.modules.module, name), "__len__")
    }
    return {
        **{name: answer() for name, answer in ANSWERS.items()},
        **generators(),
        **{name: {key: id(value) for key, value in vars(owner).items()} for name, owner in FUNCTIONS.items()},
        "module hooks": hooks,
        "filters": list(warnings.filters),
        "showing of warnings": (warnings.showwarning, warnings._showwarnmsg_impl),  # type: ignore[attr-defined]
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "exception hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "streams": (sys.stdout, sys.stderr),
        "garbage collector": (gc.isenabled(), gc.get_threshold(), len(gc.callbacks)),
        "recursion": sys.getrecursionlimit(),
        "tracing": (sys.gettrace(), sys.getprofile()),
        "logging": (logging.root.level, len(logging.root.handlers), logging.root.manager.disable),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "running threads": sorted(thread.name for thread in threading.enumerate()),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say in words what differs."""
    found = []
    for name, one in before.items():
        other = after[name]
        if one != other:
            if isinstance(one, dict):
                keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
                found.append(f"{name}: {keys}")
            else:
                found.append(f"{name}: {one} became {other}")
    return found


def model_state(model: nn.Module) -> dict[str, Any]:
    """What a model is made of: values, identities, modes, gradients and hooks."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: digest(tensor.detach().numpy().tobytes()) for name, tensor in tensors.items()},
        "identities": {name: (id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()},
        "gradients": {name: tensor.grad is None for name, tensor in tensors.items()},
        "asking for gradients": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "tensors' hooks": {name: len(tensor._backward_hooks or ()) for name, tensor in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
            for name, module in model.named_modules()
        },
    }
