"""Options of the campaigns, the servers that they share, and their report."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign import Referee
from forks import Server
from ranks import Launcher

TALLY: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torture")
    group.addoption("--kills", type=int, default=200, help="how many children are killed in all")
    group.addoption("--lost", type=int, default=10, help="how often each job of several processes loses one")
    group.addoption("--rounds", type=int, default=30, help="how often two processes share a folder")
    group.addoption("--repetitions", type=int, default=200, help="how often each call is repeated")
    group.addoption("--seed", type=int, default=secrets.randbelow(1 << 31), help="what chance begins with")


def pytest_report_header(config: pytest.Config) -> str:
    return f"torture: --seed {config.getoption('seed')}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not TALLY:  # a run of other tests
        return
    terminalreporter.section(f"torture, --seed {config.getoption('seed')}")
    for what, count in sorted(TALLY.items()):
        terminalreporter.write_line(f"{count:6d} {what}")


@pytest.fixture
def tally() -> Counter[str]:
    """Counts of what happened, for the report."""
    return TALLY


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance that depends on ``--seed`` and the test alone."""
    TALLY["tests that depend on the seed"] += 1
    return random.Random(f"{request.config.getoption('seed')} {request.node.name}")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two, each of which forks one child at a time."""
    folder: Path = tmp_path_factory.mktemp("servers")
    both = Server(folder / "first"), Server(folder / "second")
    yield both
    for server in both:
        server.stop()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts several processes of one job."""
    started = Launcher(tmp_path_factory.mktemp("ranks"))
    yield started
    started.stop()


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Iterator[Server]:
    """One of them; what its children leave in the folder of temporary files is a fault."""
    yield servers[0]
    left = [path.name for path in servers[0].temporary.iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")]  # PyTorch makes that one for itself


@pytest.fixture(scope="session")
def referee(servers: tuple[Server, Server]) -> Referee:
    """What every job must give."""
    return Referee(servers[0])
