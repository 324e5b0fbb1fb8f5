"""A hook of mkdocs: notebooks run the installed package, as a reader's would, and must not complain."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Any

from mkdocs.exceptions import PluginError

_STDERR = re.compile(r'<div[^>]*data-mime-type="application/vnd\.jupyter\.stderr"[^>]*>(.{,1000})', re.DOTALL)
# Else IPython puts the working directory, which is the checkout, before the installed packages.
_CONFIGURATION = "c = get_config()\nc.InteractiveShellApp.ignore_cwd = True\nc.IPKernelApp.ignore_cwd = True\n"
_folder: tempfile.TemporaryDirectory[str] | None = None


def on_startup(**_: Any) -> None:
    """Give the kernels a configuration of their own."""
    global _folder  # noqa: PLW0603 - it lives as long as the process
    _folder = tempfile.TemporaryDirectory(prefix="hvp-engine-site-")
    profile = os.path.join(_folder.name, "profile_default")
    os.makedirs(profile)
    with open(os.path.join(profile, "ipython_config.py"), "w") as file:
        file.write(_CONFIGURATION)
    os.environ["IPYTHONDIR"] = _folder.name


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Refuse a page with a cell that wrote to stderr: a warning, say."""
    if found := _STDERR.search(html):
        raise PluginError(f"{page.file.src_uri}: a cell wrote to stderr, which a notebook must not: {found[1]}")
