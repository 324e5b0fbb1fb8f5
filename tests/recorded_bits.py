"""Digests of a dozen small jobs: recorded before a change that must change no bit, compared after it.

    python tests/recorded_bits.py record FILE
    python tests/recorded_bits.py compare FILE

Bits belong to one machine, its instruction set and its number of threads: record and compare on the same one. Only the
public interface is used, so that the same file runs before and after any move inside the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from problems import CASES, GPT, Case, GPTConfig
from torch import Tensor, nn

import hvp_engine as he


class StopsOnce(list[Any]):
    """Batches whose n-th reading from the first on is interrupted, once."""

    def __init__(self, batches: list[Any], reading: int) -> None:
        super().__init__(batches)
        self._left = reading

    def __iter__(self) -> Iterator[Any]:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return super().__iter__()


def wide_gpt() -> Case:
    """A GPT whose vocabulary is much wider than its states: its head's curvature pays."""
    torch.manual_seed(5)
    model = GPT(GPTConfig(vocabulary=211, context=8, layers=2, heads=2, width=16)).eval()
    data = [tuple(torch.randint(0, 211, (n, 8)) for _ in range(2)) for n in (4, 4, 4)]
    return Case(model, he.losses.causal_lm, data)


def llama() -> Case:
    """A small Llama from transformers: RMSNorm, SiLU, rotary embeddings, grouped keys."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    data = [torch.randint(0, 29, (n, 9)) for n in (3, 2)]
    return Case(model, lambda m, tokens: m(input_ids=tokens, labels=tokens).loss, data)


def digest_spectra(spectra: he.Spectra) -> str:
    """Every number of every block."""
    digest = hashlib.blake2b(digest_size=16)
    for name, spectrum in spectra.items():
        digest.update(name.encode())
        for array in (spectrum.alphas, spectrum.betas, spectrum.steps, spectrum.nodes, spectrum.weights):
            digest.update(array.tobytes())
    return digest.hexdigest()


def decisions(spectra: he.Spectra) -> str:
    """What the scheduler chose; the budget is free memory, which changes from run to run."""
    plan = {key: value for key, value in spectra.manifest["plan"].items() if key != "budget"}
    return json.dumps(plan, sort_keys=True)


def spectra_of(case: Case, blocks: Any, **options: Any) -> dict[str, str]:
    """One job."""
    # Said here, whatever the defaults are, so that recordings outlive a change of them.
    options = {"steps": 9, "probes": 2, "distribution": "rademacher", **options}
    spectra = he.slq(case.model, case.loss, blocks, data=case.data, **options)
    return {"numbers": digest_spectra(spectra), "decisions": decisions(spectra)}


def resumed(case: Case, blocks: Any, reading: int, **options: Any) -> dict[str, str]:
    """One job that is interrupted at some reading of its data and run again in the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        case.data = StopsOnce(case.data, reading)
        stopped = False
        for _ in range(2):
            try:
                found = spectra_of(case, blocks, out=Path(folder) / "run", **options)
            except KeyboardInterrupt:
                stopped = True
        assert stopped, "the job was not interrupted"
        return found


def products_of(case: Case, blocks: Any, **options: Any) -> dict[str, str]:
    """Two vectors times every block."""
    operator = he.HessianOperator(case.model, case.loss, blocks, data=case.data, **options)
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(2, numel, generator=generator) for name, numel in operator.numel.items()}
    found = he.hvp(case.model, case.loss, vectors, blocks, data=case.data, **options)
    again = operator.matmat(vectors)
    return {"numbers": _digest(found), "operator": _digest(again)}


def _digest(products: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, product in products.items():
        digest.update(name.encode())
        digest.update(product.numpy().tobytes())
    return digest.hexdigest()


def _reference(job: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The job on the PyTorch reference of every kernel."""
    before = os.environ.get("HVP_ENGINE_BACKEND")
    os.environ["HVP_ENGINE_BACKEND"] = "torch"
    try:
        return job()
    finally:
        if before is None:
            del os.environ["HVP_ENGINE_BACKEND"]
        else:
            os.environ["HVP_ENGINE_BACKEND"] = before


def _slices() -> list[he.Block]:
    return [
        he.Block("rows", [("0.weight", slice(0, 3))]),
        he.Block("two", [("0.bias", None), ("2.weight", torch.tensor([4, 1]))]),
    ]


def _tied() -> Case:
    case = CASES["gpt"]()
    assert isinstance(case.model, nn.Module)
    case.model.lm_head.weight = case.model.wte.weight
    return case


# Bytes in which some graphs are built anew in every sweep and the streams run in several waves.
TIGHT_CNN, TIGHT_GPT = 20_000, 900_000

JOBS: dict[str, Callable[[], dict[str, str]]] = {
    "gpt full fp32": lambda: spectra_of(CASES["gpt"](), None),
    "gpt parameters fp32": lambda: spectra_of(CASES["gpt"](), "parameter"),
    "gpt parameters fp64": lambda: spectra_of(CASES["gpt"](), "parameter", precision="fp64"),
    "gpt modules bf16": lambda: spectra_of(CASES["gpt"](), "module", precision="bf16"),
    "gpt bf16 basis": lambda: spectra_of(CASES["gpt"](), "parameter", basis="bf16", distribution="gaussian"),
    "gpt without reorthogonalisation": lambda: spectra_of(CASES["gpt"](), "module", reorthogonalize="none", seed=7),
    "gpt micro-batches of one": lambda: spectra_of(CASES["gpt"](), "module", microbatch=1),
    "gpt tied": lambda: spectra_of(_tied(), "parameter"),
    "gpt reference kernels": lambda: _reference(lambda: spectra_of(CASES["gpt"](), "parameter")),
    "wide gpt head curvature": lambda: spectra_of(wide_gpt(), "parameter", steps=20, probes=6),
    "wide gpt head curvature bf16": lambda: spectra_of(wide_gpt(), "parameter", steps=20, probes=6, precision="bf16"),
    "wide gpt classes dropped": lambda: spectra_of(
        wide_gpt(), "module", steps=20, probes=6, head_curvature_tolerance=0.05
    ),
    "wide gpt without head curvature": lambda: spectra_of(
        wide_gpt(), "parameter", steps=20, probes=6, head_curvature=False
    ),
    "wide gpt waves": lambda: spectra_of(wide_gpt(), "parameter", steps=12, probes=3, memory=TIGHT_GPT),
    "wide gpt waves resumed": lambda: resumed(wide_gpt(), "parameter", 26, steps=12, probes=3, memory=TIGHT_GPT),
    "cnn resumed": lambda: resumed(CASES["cnn"](), "parameter", 14, microbatch=1, memory=TIGHT_CNN),
    "cnn full": lambda: spectra_of(CASES["cnn"](), None, steps=30, probes=3),
    "mlp slices": lambda: spectra_of(CASES["mlp"](), _slices()),
    "mlp to the end of its space": lambda: spectra_of(CASES["mlp"](), "parameter", steps=60),
    "llama parameters": lambda: spectra_of(llama(), "parameter"),
    "llama hvp bf16": lambda: products_of(llama(), "module", precision="bf16"),
    "gpt hvp": lambda: products_of(CASES["gpt"](), "parameter"),
    "gpt hvp fp64": lambda: products_of(CASES["gpt"](), None, precision="fp64"),
    "cnn hvp": lambda: products_of(CASES["cnn"](), "parameter"),
    "mlp hvp": lambda: products_of(CASES["mlp"](), "module"),
}


def main() -> int:
    """Record or compare; 1 where a bit differs."""
    command, file = sys.argv[1], Path(sys.argv[2])
    found = {}
    for name, job in JOBS.items():
        started = time.perf_counter()
        found[name] = job()
        print(f"{time.perf_counter() - started:6.1f} s  {name}", flush=True)
    if command == "record":
        file.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} jobs recorded")
        return 0
    wanted = json.loads(file.read_text())
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    for name in wrong:
        print(f"{name}: {wanted.get(name)} recorded, {found.get(name)} now")
    print(f"{len(found) - len(wrong)} of {len(wanted)} jobs give the recorded bits")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
