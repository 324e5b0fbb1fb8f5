"""Where the .cu sources are, and how C++ sources are compiled and linked for tests; does not load PyTorch."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

EMULATION = Path(__file__).parent / "emulation"
CSRC = Path(__file__).parents[2] / "csrc"
KERNELS = ("reorthogonalize.cu", "lanczos_step.cu", "tridiagonal.cu", "device.cu")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


def compile_source(file: Path, folder: Path, *flags: str, include: tuple[Path | str, ...]) -> Path:
    """Compiles a file, as C++ whatever its name, into FOLDER/NAME.o."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{file.name}.o"
    command = ["g++", *flags, *(f"-I{path}" for path in include), "-x", "c++", "-c", str(file), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return target


def link(target: Path, objects: Iterable[Path], *flags: str) -> Path:
    """Links objects and returns what became of them."""
    subprocess.run(["g++", "-o", str(target), *map(str, objects), *flags], check=True, timeout=60)
    return target
