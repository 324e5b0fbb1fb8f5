"""What was measured on GPUs: ``gpu.json`` beside this file, which takes the place of estimates in the plans.

It is part of the package, so that a clone and an installed wheel read the same numbers, and absent until a card was
measured. ``benchmarks/gpu/measured_rows.py`` writes it from what ``benchmarks/gpu_stages.py`` found. By name of the
device (:data:`hvp_engine.planning.devices.GPUS`), every entry but the first may be left out, and keeps its estimate:

- ``measured_on``: what the driver calls the card.
- ``copy_gbs``: GB/s of a copy, read and written bytes both counted.
- ``gemm_tflops``: by precision (bf16, tf32, fp32, fp64), by ``"ROWS x INNER x COLUMNS"``: TFLOP/s of one product. The
  largest stands for the head, the others, as a harmonic mean, for linear layers.
- ``attention_tflops``: by precision, by pass (forward, backward, second): TFLOP/s by the products that the kernels form
  (``attention_products.py`` of their backend), a causal triangle without its edge.
- ``launch_us``: ``plain`` and ``fused``, microseconds per operation of PyTorch and per kernel of this package that a
  product takes beyond its kernels: of one that is replayed as a CUDA graph, as products of jobs are.
- ``bandwidth_share``: by family of :class:`hvp_engine.planning.efficiencies.Efficiencies`: share of the data sheet's
  bandwidth.
- ``product_ms``: by precision, by block: milliseconds of one product of GPT-2 (8 x 1,024 tokens); no plan reads them,
  ``benchmarks/gpu/measured_rows.py`` sets them beside what is predicted.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvp_engine.errors import ConfigurationError
from hvp_engine.planning.efficiencies import Efficiencies
from hvp_engine.problem.precision import Precision

PATH = Path(__file__).with_name("gpu.json")
_KEYS = {
    "measured_on",
    "copy_gbs",
    "gemm_tflops",
    "attention_tflops",
    "launch_us",
    "bandwidth_share",
    "product_ms",
}


def measured(
    device: str, predicted: Efficiencies, peak: Mapping[Precision, float], bandwidth: float, path: Path | None = None
) -> Efficiencies:
    """Return what a device was measured to reach, in place of estimates; these where it was not measured.

    Args:
        device: Its name.
        predicted: The estimates.
        peak: FLOP per second of the data sheet by precision.
        bandwidth: Bytes per second of the data sheet.
        path: The file; None reads the package's own.

    Raises:
        ConfigurationError: The file is no such file.
    """
    path = PATH if path is None else path
    if not path.is_file():
        return predicted
    try:
        rows = json.loads(path.read_text())
        return _merged(rows[device], predicted, peak, bandwidth) if device in rows else predicted
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigurationError(
            f"{path} does not hold what was measured on {device} ({type(error).__name__}: {error}). Write it again "
            "with benchmarks/gpu/measured_rows.py, or remove it: plans then start from estimates."
        ) from error


def _merged(
    row: Mapping[str, Any], predicted: Efficiencies, peak: Mapping[Precision, float], bandwidth: float
) -> Efficiencies:
    unknown = sorted(row.keys() - _KEYS)
    if unknown:
        raise ValueError(f"unknown entries {', '.join(unknown)}")
    product: dict[str, dict[Precision, float]] = {name: dict(shares) for name, shares in predicted.product.items()}
    for precision, ceiling in peak.items():
        shapes = dict(sorted(row.get("gemm_tflops", {}).get(precision, {}).items(), key=lambda item: _size(item[0])))
        if shapes:
            *small, largest = shapes.values()
            product["linear"][precision] = _share(statistics.harmonic_mean(small or [largest]), ceiling)
            product.setdefault("head", dict(product["linear"]))[precision] = _share(largest, ceiling)
        for name, rate in row.get("attention_tflops", {}).get(precision, {}).items():
            product[f"attention {name}"][precision] = _share(rate, ceiling)
    streams = dict(predicted.bandwidth)
    if "copy_gbs" in row:
        streams["elementwise"] = row["copy_gbs"] * 1e9 / bandwidth
    streams.update({name: float(share) for name, share in row.get("bandwidth_share", {}).items()})
    launch = row.get("launch_us", {})
    return replace(
        predicted,
        product=product,
        bandwidth=streams,
        plain_launch=launch["plain"] * 1e-6 if launch else predicted.plain_launch,
        fused_launch=launch["fused"] * 1e-6 if launch else predicted.fused_launch,
        source=f"measured on {row['measured_on']}",
    )


def _size(shape: str) -> int:
    rows, inner, columns = (int(size) for size in shape.split(" x "))
    return rows * inner * columns


def _share(tera: float, ceiling: float) -> float:
    """Return a share of a peak; faster than the data sheet's is as good as all of it."""
    return min(1.0, tera * 1e12 / ceiling)
