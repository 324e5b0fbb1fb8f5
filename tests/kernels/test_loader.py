from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
import warnings

import pytest
import torch

from hvp_engine.errors import BackendError
from hvp_engine.kernels import loader
from hvp_engine.kernels.softmax import softmax_forward


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_extension_is_built_and_loaded():
    assert loader.missing_reason is None
    assert loader.native.abi_version == loader.ABI_VERSION


def test_torch_and_the_extension_share_one_libgomp():
    # In a process of its own: scikit-learn, which other tests load, brings a second one.
    done = run_python(
        "from hvp_engine.kernels import loader\n"
        "assert loader.missing_reason is None\n"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))"
    )
    assert done.stdout.strip() == "1", done.stderr


def test_torch_thread_setting_governs_the_extension():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert loader.native.num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_torch_thread_setting_governs_kernels_in_threads_that_pytorch_has_not_met():
    before, counts = torch.get_num_threads(), []

    def kernel():
        x = torch.empty(2, 3)
        softmax_forward(x, torch.empty_like(x))
        counts.append(loader.native.num_threads())

    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            thread = threading.Thread(target=kernel)
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert counts == [1, 3]


def test_the_instruction_set_can_be_lowered():
    done = run_python("from hvp_engine.kernels.loader import native; print(native.isa())", HVP_ENGINE_ISA="baseline")
    assert done.stdout.strip() == "baseline"


def test_an_unknown_instruction_set_is_named_in_the_error():
    done = run_python("import hvp_engine.kernels.loader", HVP_ENGINE_ISA="sse9")
    assert done.returncode != 0
    assert "BackendError: HVP_ENGINE_ISA=sse9 is not an instruction set" in done.stderr


def test_a_missing_extension_gives_none_and_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "hvp_engine._native", None)
    module, reason = loader._load()
    assert module is None
    assert "cannot be imported" in reason


def test_an_extension_of_another_abi_is_refused(monkeypatch):
    stale = types.SimpleNamespace(abi_version=loader.ABI_VERSION + 1)
    monkeypatch.setitem(sys.modules, "hvp_engine._native", stale)
    module, reason = loader._load()
    assert module is None
    assert f"ABI version {loader.ABI_VERSION + 1}" in reason


def test_an_instruction_set_error_of_the_extension_is_a_backend_error(monkeypatch):
    def isa():
        raise ValueError("HVP_ENGINE_ISA=avx512, but this CPU supports at most avx2")

    module = types.SimpleNamespace(abi_version=loader.ABI_VERSION, isa=isa)
    monkeypatch.setitem(sys.modules, "hvp_engine._native", module)
    with pytest.raises(BackendError, match="supports at most avx2"):
        loader._load()


def test_a_missing_extension_warns_exactly_once(monkeypatch):
    monkeypatch.setattr(loader, "missing_reason", "the extension is gone")
    monkeypatch.setattr(loader, "_warned", False)
    with pytest.warns(RuntimeWarning, match="the extension is gone"):
        loader.warn_if_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.warn_if_missing()
