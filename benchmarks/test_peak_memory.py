"""Peak memory of one full product of GPT-2 small (T = 1,024, vocabulary 50,304), against PyTorch's math path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PRODUCT = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(2)
from baselines.best_practice import BestPracticeHessian
from jobs import mean_loss
from timing import process_peak_gib
import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
torch.manual_seed(0)
model = GPT(GPTConfig(vocabulary=50_304, context=1024, layers=int(sys.argv[3]), heads=12, width=768)).eval()
data = [torch.randint(0, 50_304, (1, 1024))]
name = "layers.0.attn.wq.weight"
vector = torch.ones(768 * 768) / 768
before = process_peak_gib()
if sys.argv[2] == "engine":
    he.hvp(model, he.losses.causal_lm, {"b": vector[None]}, {"b": [name]}, data=data)
else:
    BestPracticeHessian(model, mean_loss, data, {"b": name}).sweep({"b": vector})
print(json.dumps(process_peak_gib() - before))
"""
LAYERS = 12


def test_peak_memory_of_one_product(benchmark):
    """Peak resident memory (GiB) beyond model and libraries of one product with a layer-0 block."""

    def peak(who: str) -> float:
        command = [sys.executable, "-c", PRODUCT, str(Path(__file__).parent), who, str(LAYERS)]
        return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    plain = peak("math")
    engine = benchmark.pedantic(peak, ("engine",), rounds=1)
    benchmark.extra_info.update(engine_gib=engine, math_path_gib=plain, share=engine / plain)
