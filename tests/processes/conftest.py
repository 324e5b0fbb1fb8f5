"""The launcher that the tests of several processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ranks import Launcher


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """One server for all of them."""
    started = Launcher(tmp_path_factory.mktemp("ranks"))
    yield started
    started.stop()
