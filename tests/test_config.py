from __future__ import annotations

import torch

import hvp_engine
from hvp_engine import config as configuration
from hvp_engine.kernels import loader


def runtimes() -> set[str]:
    """Name the OpenMP runtimes of this process: scikit-learn, which other tests load, brings one of its own."""
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if "libgomp" in line}


def test_config_reports_what_runs(monkeypatch):
    monkeypatch.delenv("HVP_ENGINE_BACKEND", raising=False)
    facts = configuration.config()
    assert facts["versions"]["hvp_engine"] == hvp_engine.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["backends"]["cpu"] == {"available": ["native", "torch"], "used": "native"}
    assert facts["isa"] == loader.native.isa()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["libgomp_shared"] is (len(runtimes()) == 1)


def test_show_config_prints_an_impossible_wish_instead_of_failing(monkeypatch, capsys):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "abacus")
    configuration.show_config()
    printed = capsys.readouterr().out
    assert "none: HVP_ENGINE_BACKEND=abacus cannot be used on cpu" in printed
    assert f"libgomp shared  {len(runtimes()) == 1}" in printed


def test_config_without_the_extension_names_the_reason(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    monkeypatch.setattr(loader, "missing_reason", "it was not built")
    facts = configuration.config()
    assert facts["isa"] is None
    assert facts["native_missing_reason"] == "it was not built"
    assert facts["backends"]["cpu"] == {"available": ["torch"], "used": "torch"}
