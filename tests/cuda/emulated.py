"""Builds the .cu sources for the CPU (emulation/) and runs their launchers on tensors."""

from __future__ import annotations

import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from compiling import CSRC, EMULATION, FLAGS, KERNELS, compile_source, link

from hvp_engine.kernels.streams import TWICE, Projection

SUPPORT = ("emulation.cpp", "harness.cpp")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # hvp::Dtype in csrc/include/hvp/dtype.h


class Failure(Exception):
    """The emulated kernel was caught doing wrong; the message is what the harness or a sanitizer said."""


def copy_of_sources(folder: Path, file: str, old: str, new: str) -> Path:
    """Copies csrc/cuda with one place changed, which must be there exactly once."""
    folder.mkdir(parents=True)
    for source in (CSRC / "cuda").iterdir():
        text = source.read_text()
        if source.name == file:
            assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
            text = text.replace(old, new)
        (folder / source.name).write_text(text)
    return folder


def build(
    folder: Path,
    *flags: str,
    sources: Path = CSRC / "cuda",
    kernels: tuple[str, ...] = KERNELS,
    rest: Path | None = None,
) -> Emulator:
    """Compiles launchers of a folder with the emulated runtime, two files at a time.

    Files that are not in `kernels`, and the runtime, come from the folder `rest`, built before with the same flags.
    """
    files = [sources / name for name in kernels]
    if rest is None:
        files += [EMULATION / name for name in SUPPORT]
    include = (EMULATION, CSRC / "include", sources)

    def compile_one(file: Path) -> None:
        own = flags
        if file.name == "emulation.cpp":  # the scheduler tells ThreadSanitizer about threads and is not one itself
            own = tuple("-DHVP_EMULATION_TSAN" if f == "-fsanitize=thread" else f for f in flags)
        compile_source(file, folder, *FLAGS, *own, include=include)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, files))
    compiled = {file.name for file in files}
    objects = [(folder if name in compiled else rest or folder) / f"{name}.o" for name in (*KERNELS, *SUPPORT)]
    return Emulator(link(folder / "harness", objects, *flags))


class Quadrature(NamedTuple):
    nodes: np.ndarray
    weights: np.ndarray
    failed: int


def _bytes(tensor: torch.Tensor) -> bytes:
    """The storage behind a (rows, n) or (n,) tensor from its first to its last element."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((extent if tensor.numel() else 0,), (1,), tensor.storage_offset())
    return flat.contiguous().view(torch.uint8).numpy().tobytes()


class Emulator:
    """A built harness; results are new tensors, arguments stay as they are."""

    def __init__(self, harness: Path) -> None:
        self._harness = harness
        self.folder = harness.parent

    def _run(self, kernel: str, arrays: list[tuple[int, bytes]], order: str) -> list[bytes]:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            given, result = Path(folder) / "in", Path(folder) / "out"
            with given.open("wb") as file:
                for lead, data in arrays:
                    file.write(np.array([lead, len(data)], dtype=np.int64).tobytes() + data)
            environment = {**os.environ, "HVP_EMULATION_ORDER": order, "TSAN_OPTIONS": "exitcode=66"}
            done = subprocess.run(
                [str(self._harness), kernel, str(given), str(result)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode != 0:
                raise Failure(done.stderr)
            data, pieces, position = result.read_bytes(), [], 0
            for _, before in arrays:
                pieces.append(data[position : position + len(before)])
                position += len(before)
            return pieces

    def reorthogonalize(self, bases, vectors, counts, rule=TWICE, *, order="fwd", lead=0) -> tuple:
        """Returns (Projection, new vectors), and corrects last rows in place where the rule says so.

        `lead` misaligns every basis by so many elements.
        """
        num, width = len(vectors), max(counts)
        near, *tolerances = rule.numbers
        parameters = [num, width, near]
        for basis, vector, count in zip(bases, vectors, counts, strict=True):
            parameters += [basis.stride(0), vector.shape[0], count]
            parameters += [DTYPES[basis.dtype], DTYPES[vector.dtype]]
        nan = np.full(num * (width + 2), np.nan)
        arrays = [(0, np.array(parameters, dtype=np.int64).tobytes())]
        arrays += [(0, nan[: num * width].tobytes()), (0, nan[:num].tobytes()), (0, nan[:num].tobytes())]
        arrays += [(0, np.array(tolerances).tobytes())]
        for basis, vector, count in zip(bases, vectors, counts, strict=True):
            arrays += [(lead * basis.element_size(), _bytes(basis[:count])), (0, _bytes(vector))]
        pieces = self._run("reorthogonalize", arrays, order)
        doubles = [torch.frombuffer(bytearray(p) or bytearray(8), dtype=torch.float64) for p in pieces[1:4]]
        coefficients = doubles[0][: num * width].reshape(num, width)
        results = [torch.frombuffer(bytearray(p), dtype=v.dtype) for p, v in zip(pieces[6::2], vectors, strict=True)]
        if rule.postponed is not None:
            for basis, piece, count in zip(bases, pieces[5::2], counts, strict=True):
                strided = torch.frombuffer(bytearray(piece) or bytearray(8), dtype=basis.dtype)
                basis[:count] = strided.as_strided((count, basis.shape[1]), (basis.stride(0), 1))
        return Projection(coefficients, doubles[1], doubles[2]), results

    def tridiagonal_quadrature(self, alphas, betas, steps, *, order="fwd") -> Quadrature:
        num, m = alphas.shape
        nan = np.full((num, m), np.nan)
        arrays = [np.array([num, m], dtype=np.int64), alphas, betas, steps, nan, nan, np.array([7], dtype=np.int64)]
        pieces = self._run("tridiagonal_quadrature", [(0, np.ascontiguousarray(a).tobytes()) for a in arrays], order)
        nodes, weights = (np.frombuffer(p).reshape(num, m) for p in pieces[4:6])
        return Quadrature(nodes, weights, int(np.frombuffer(pieces[6], dtype=np.int64)[0]))

    def record_step(self, streams, state, *, alpha, beta, lost, position, tolerance, order="fwd") -> tuple:
        """Returns (new state, [(store, window)]).

        `streams` holds (vector, store row or None, window row or None, state row, last step); `state` the arrays
        alphas, betas, norms, lost, steps and live.
        """
        parameters = [len(streams), 1, position, state[0].shape[1]]
        arrays: list[np.ndarray | bytes] = [np.array([tolerance]), alpha, beta, lost, *state]
        for vector, store, window, row, last_step in streams:
            store_type = 0 if store is None else DTYPES[store.dtype]
            parameters += [vector.shape[0], row, last_step, store_type, DTYPES[vector.dtype]]
            arrays += [b"" if t is None else _bytes(t) for t in (vector, store, window)]
        arrays.insert(0, np.array(parameters, dtype=np.int64))
        given = [(0, a if isinstance(a, bytes) else np.ascontiguousarray(a).tobytes()) for a in arrays]
        pieces = self._run("record_step", given, order)
        after = [np.frombuffer(p, dtype=a.dtype).reshape(a.shape) for p, a in zip(pieces[5:11], state, strict=True)]
        rows = []
        for s, (_, store, window, _, _) in enumerate(streams):
            written = zip((store, window), pieces[12 + 3 * s : 14 + 3 * s], strict=True)
            rows.append(tuple(None if t is None else torch.frombuffer(bytearray(p), dtype=t.dtype) for t, p in written))
        return after, rows
