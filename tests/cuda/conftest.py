from __future__ import annotations

import device_process
import pytest
import torch
from emulated import build


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """The .cu sources as they are, compiled for the CPU."""
    return build(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session")
def device_libraries(emulator, tmp_path_factory):
    """The emulated device, and the bindings over emulated kernels."""
    return device_process.build_extension(tmp_path_factory.mktemp("device"), emulator.folder)


@pytest.fixture(scope="session")
def emulated_device(request):
    """A process with a CUDA device, for the tests marked by `device_process.on_device`."""
    if torch.backends.cuda.is_built():
        pytest.skip("PyTorch here has CUDA kernels of its own; benchmarks/gpu_validate.py runs these paths on a card")
    with device_process.start(*request.getfixturevalue("device_libraries")):
        yield
