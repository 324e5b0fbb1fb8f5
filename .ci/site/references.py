"""A hook of mkdocs: ``:func:`slq` `` in a docstring becomes a link to where the reference has it, or plain code."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):<code>([\w.]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Leave an optional cross-reference, which mkdocs-autorefs resolves, in the place of every role."""
    return ROLE.sub(_reference, html)


def _reference(match: re.Match[str]) -> str:
    name = match[1]
    target = name if name.startswith("hvp_engine.") else f"hvp_engine.{name}"
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'
