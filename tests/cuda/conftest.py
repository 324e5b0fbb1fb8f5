from __future__ import annotations

import pytest
from emulated import build


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """The .cu sources as they are, compiled for the CPU."""
    return build(tmp_path_factory.mktemp("emulation"))
