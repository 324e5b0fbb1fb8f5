"""When, where and by what command a result was made, and of whose model: told in the manifest, never compared."""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from typing import Any

from torch import nn

from hvp_engine.errors import printable
from hvp_engine.system.versions import version_of_module


def origin(model: nn.Module) -> dict[str, Any]:
    """Return date, host, command line, and what the model is made of, as plain data."""
    return {**here_and_now(), "model": {"class": _name(type(model)), "packages": _packages(model)}}


def here_and_now() -> dict[str, Any]:
    """Return the date (UTC, ISO 8601), the name of this machine, and the command line of this process."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "host": printable(platform.node()),
        "command": [printable(word) for word in sys.orig_argv],  # JSON has no room for undecoded bytes
    }


def _packages(model: nn.Module) -> dict[str, str | None]:
    """Return the versions of the packages that the classes of the modules are from; None for code without one."""
    names = sorted({type(module).__module__.partition(".")[0] for module in model.modules()})
    return {name: version_of_module(name) for name in names}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
