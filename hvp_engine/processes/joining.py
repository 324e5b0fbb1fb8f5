"""How a process finds the others of its job: by what torchrun tells it, or by a process group that is there."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from operator import index
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from hvp_engine.errors import ConfigurationError, ProcessError
from hvp_engine.processes.failures import Notice, noted
from hvp_engine.processes.launching import is_launched
from hvp_engine.processes.several import TIMEOUT, Several
from hvp_engine.processes.team import ALONE, Axes, Team
from hvp_engine.system.formatting import first_line
from hvp_engine.system.locks import myself
from hvp_engine.system.memory import shared_by
from hvp_engine.system.torch_private import default_store

AUTO = "auto"
_START = "start the job by torchrun --nproc-per-node N, or make the process group before"
_PLACE = "hvp_engine/store"
_ANSWER = timedelta(seconds=5)  # within which a store answers
_numbers = itertools.count()  # of jobs: all processes run the same ones in the same order
_stores: list[Any] = []


@contextlib.contextmanager
def joined(distributed: str | Mapping[str, int] | None, device: torch.device) -> Iterator[Team]:
    """Work with the other processes of a job inside, or alone where there are none; all of them enter at once.

    The process group that is there is taken; one made here stays for later jobs. Meanwhile logs and warnings come from
    the first process alone, and memory of the host is shared among those on it.

    Args:
        distributed: None for one process, ``"auto"``, or numbers of processes by axis (``"probes"``, ``"data"``); an
            axis left out gets what is left.
        device: Where the model is.

    Raises:
        ConfigurationError: It is none of these, or does not fit the number of processes.
        ProcessError: Another process has ended.
    """
    wanted = _parsed(distributed)
    several = distributed is not None and (is_launched() or _is_ready())
    if several and not _is_ready():
        if _stores:
            raise ProcessError("The processes lost each other when an earlier job failed; start them again.")
        _begin(device)
    if not several or dist.get_world_size() == 1:
        _axes(wanted, 1)
        yield ALONE
        return
    size = dist.get_world_size()
    store = _stores[-1] if _stores else default_store()
    notice = None if store is None else Notice(store, str(next(_numbers)), dist.get_rank(), size)
    with _closing(device), noted(notice):
        team = Several(device, _axes(wanted, size), notice or Notice(_NoStore(), "", dist.get_rank(), size))
        team.notice.places = team.gathered(myself())
        hosts = [str(place["host"]) for place in team.notice.places]
        _refuse_one_device(list(zip(hosts, team.gathered(str(device)), strict=True)), device)
        beside = hosts.count(hosts[team.rank])
        with shared_by(beside), contextlib.nullcontext() if team.first else _silence():
            yield team


def _parsed(distributed: object) -> dict[str, int] | None:
    """Return what was asked for by axis; None where nothing was.

    Raises:
        ConfigurationError: It is nothing that can be asked for.
    """
    if distributed in (None, AUTO):
        return None
    axes: dict[str, int] = {}
    if isinstance(distributed, Mapping) and distributed.keys() <= set(Axes._fields):
        for name, count in distributed.items():
            with contextlib.suppress(TypeError):
                axes[name] = index(count)
        if axes.keys() == distributed.keys() and all(count >= 1 for count in axes.values()) and axes:
            return axes
    raise ConfigurationError(
        f"distributed={distributed!r} is neither None nor 'auto', nor numbers of processes by axis, for instance "
        "{'probes': 2, 'data': 4}."
    )


def _axes(wanted: Mapping[str, int] | None, size: int) -> Axes | None:
    """Return the arrangement of so many processes that was asked for, if one was.

    Raises:
        ConfigurationError: It takes another number of processes.
    """
    if wanted is None:
        return None
    given = next(iter(wanted.values()))
    both = wanted if len(wanted) == 2 else {**dict.fromkeys(Axes._fields, max(1, size // given)), **wanted}
    axes = Axes(**both)
    if axes.size != size:
        here = "this is one process" if size == 1 else f"there are {size}"
        raise ConfigurationError(
            f"distributed={dict(wanted)} takes {axes.size} processes, and {here}: {_START}, with as many processes as "
            "the product of the two."
        )
    return axes


def _is_ready() -> bool:
    return dist.is_available() and dist.is_initialized()


def _begin(device: torch.device) -> None:
    """Make the process group that the launcher's environment describes."""
    if not dist.is_available():
        raise ConfigurationError("This PyTorch was built without torch.distributed; run the job in one process.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        shared, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = _own_store(shared, rank)
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(f"The other processes cannot be found ({error}): {_START}.") from error
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:
        raise ProcessError(
            f"The {size} processes cannot connect ({first_line(error)}): one of them ended meanwhile, or a network is "
            "closed to them. Start them again."
        ) from error
    _stores.append(store)
    atexit.register(_end)


def _own_store(shared: Any, rank: int) -> Any:
    """Return a store of these processes alone.

    That of torchrun lives on when processes are started again, with addresses of dead ones in it, which the new ones
    would try to reach; and its count of restarts is another one on every node. So the first process makes a store,
    whose place the others read until it is one that answers.

    Raises:
        RuntimeError: None answers.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return shared
    make: Any = dist.TCPStore  # type: ignore[attr-defined]  # it is public, and lists of public names lack it
    host = os.environ["MASTER_ADDR"]
    if rank == 0:
        store = make(host, 0, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        shared.set(_PLACE, str(store.port))
        return store
    end = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        try:
            port = int(shared.get(_PLACE))
            store = make(host, port, is_master=False, timeout=_ANSWER, wait_for_workers=False)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(_ANSWER.total_seconds() / 10)
            continue
        store.set_timeout(TIMEOUT)
        return store


def _end() -> None:
    """Take the process group down that was made here."""
    with contextlib.suppress(Exception):  # another process has failed
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _closing(device: torch.device) -> Iterator[None]:
    """Where the work inside fails take the process group down that was made here, for the others wait for messages.

    NCCL may wait for them there; what ends them is the end of this process.
    """
    try:
        yield
    except BaseException:
        if _stores:
            atexit.unregister(_end)
            if device.type == "cpu":
                _end()
        raise


def _refuse_one_device(places: list[tuple[str, str]], device: torch.device) -> None:
    """Refuse two processes on one GPU.

    Raises:
        ConfigurationError: There are two.
    """
    for rank, place in enumerate(places):
        first = places.index(place)
        if device.type == "cuda" and first < rank:
            raise ConfigurationError(
                f"Ranks {first} and {rank} both have the model on {place[1]} of {place[0]}: call "
                "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) before the model is made, and make it on 'cuda'."
            )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what this process would say to itself: the first one says it."""
    logger = logging.getLogger("hvp_engine")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _NoStore:
    """Stands for a store where the process group shows none."""

    def set(self, key: str, value: str) -> None:
        """Write nothing."""

    def get(self, key: str) -> bytes:
        """Have nothing."""
        raise KeyError(key)

    def check(self, keys: list[str]) -> bool:
        """Have nothing.

        Raises:
            RuntimeError: Always, as a store does that is out of reach.
        """
        raise RuntimeError("There is no store.")
