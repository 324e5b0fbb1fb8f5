"""The planner: counts against formulas, memory against measured graphs, settings against the engine's own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from problems import Case, gpt, quadratic, symmetric
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hvp_engine as he
from hvp_engine import cli
from hvp_engine.blocks import resolve
from hvp_engine.errors import BlockError, ConfigurationError, NonDeterministicError, ObjectiveError, OutOfMemoryError
from hvp_engine.experiments import gpt2_paper
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.experiments.published import published_counts
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.planning.counting import Counts, JobCounter, data_shape, meta_copy

CONFIG = GPTConfig(vocabulary=512, context=128, layers=2, heads=2, width=32)
BATCH = 3


def counted(model: nn.Module, loss: object, data: list[object], blocks: object = None) -> Counts:
    shell = meta_copy(model, torch.float32)
    return JobCounter(shell, loss, data_shape(data, torch.float32), resolve(shell, blocks)).count(None)


def small_gpt() -> tuple[GPT, list[torch.Tensor]]:
    torch.manual_seed(0)
    return GPT(CONFIG).eval(), [torch.randint(0, CONFIG.vocabulary, (BATCH, CONFIG.context)) for _ in range(2)]


def test_products_of_an_mlp_are_those_of_the_formulas() -> None:
    n, d0, d1, d2 = 11, 7, 5, 3
    model = nn.Sequential(nn.Linear(d0, d1), nn.Tanh(), nn.Linear(d1, d2))
    data = [(torch.randn(n, d0), torch.randint(0, d2, (n,)))]
    found = counted(model, he.losses.classification, data, ["0.weight", "2.weight"])
    first, second = 2 * n * d0 * d1, 2 * n * d1 * d2
    assert found.forward.flop == first + second
    assert found.gradient.flop == first + 2 * second
    # Tangents go up from the block to the loss and back: twice every product on the way, and none below the block.
    assert found.blocks["2.weight"].flop == 2 * second
    assert found.blocks["0.weight"].flop == 2 * first + 2 * second


def test_products_of_a_transformer_are_those_of_the_formulas() -> None:
    model, data = small_gpt()
    found = counted(model, he.losses.causal_lm, data, {"full": ["*"], "last": ["layers.1.c_proj.weight"]})
    tokens, d, v = BATCH * CONFIG.context, CONFIG.width, CONFIG.vocabulary
    predicted = tokens - BATCH  # the last token of a sequence predicts none, so that the head never sees it
    head = 2 * predicted * v * d
    linear = 2 * tokens * CONFIG.layers * 12 * d * d + head
    seen = 0.5 * (1 + 64 / CONFIG.context)  # tiles of 64 x 64 on and below the diagonal
    product = CONFIG.layers * 2 * tokens * CONFIG.context * d * seen
    assert found.forward.flop == linear + 2 * product
    assert found.gradient.flop == 2 * linear + 5 * product
    # Six products per linear layer; twelve of attention's second backward and five of its backward along tangents.
    assert found.blocks["full"].flop == 6 * linear + (12 + 5) * product
    assert found.blocks["last"].flop == 2 * (2 * tokens * 4 * d * d + head)
    assert (found.head.tokens, found.head.hidden_size, found.head.classes) == (predicted, d, v)
    assert found.head.blocks == {"full"}


def test_plain_operations_agree_with_the_flop_counter_of_torch() -> None:
    model, data = small_gpt()
    found = published_counts(
        meta_copy(model, torch.float32), he.losses.causal_lm, data[0].to("meta"), resolve(model, {"all": ["*"]})
    )
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            total, _ = he.losses.causal_lm(model, data[0])
            gradients = torch.autograd.grad(total, parameters, create_graph=True)
        assert found.gradient.flop == counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(gradients, parameters, [torch.ones_like(p) for p in parameters])
        assert found.blocks["all"].flop == counter.get_total_flops()
    assert found.separate == {"all"} and found.flop == found.gradient.flop + found.blocks["all"].flop


def test_bytes_are_those_of_inputs_and_outputs() -> None:
    n, d = 64, 48
    model = nn.Linear(d, d, bias=False)
    found = counted(model, lambda m, batch: m(batch).exp().sum(), [torch.randn(n, d)])
    # One product, one exponential, one sum.
    assert found.forward.bytes == 4 * ((n * d + d * d + n * d) + 2 * n * d + (n * d + 1))


def test_graphs_are_as_large_as_the_engine_measures_them(case: Case) -> None:
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    measured = operator.scheduler.plan.graph_bytes
    planned = he.plan(case.model, case.loss, data=case.data, device="a100-80gb").setting.graph_bytes
    assert measured / 1.25 < planned < measured * 1.25


def saved_bytes(operator: he.HessianOperator, batch: object) -> dict[torch.dtype, int]:
    """Bytes of the distinct storages that the engine's gradient graph of a batch keeps, by dtype."""
    own = {p.untyped_storage().data_ptr() for p in operator.objective.model.parameters()}
    found: dict[int, tuple[torch.dtype, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (tensor.dtype, storage.nbytes())
        return tensor

    with operator.objective.arithmetic(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total, weight = operator.objective.evaluate(batch)
        graph = GradientGraph(total, weight, dict(operator.objective.model.named_parameters()))
    sizes: dict[torch.dtype, int] = {}
    for dtype, size in found.values():
        sizes[dtype] = sizes.get(dtype, 0) + size
    del graph
    return sizes


class OtherLayers(nn.Module):
    """What the GPT lacks: RMS normalisation, SiLU, a softmax and attention of plain products, a head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.back = nn.RMSNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 96)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.back(F.silu(self.query(self.norm(hidden))))
        weights = torch.softmax(update @ hidden.transpose(-2, -1), -1)
        return self.head(hidden + weights @ update)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt", "other layers"])
def test_graph_bytes_are_those_of_the_tensors_that_the_engine_saves(name: str, precision: str) -> None:
    if name == "gpt":
        model, (batch, _) = small_gpt()
        loss = he.losses.causal_lm
    else:
        torch.manual_seed(0)
        model, batch = OtherLayers(), (torch.randn(2, 50, 24), torch.randint(0, 96, (2, 50)))
        loss = he.losses.classification
    operator = he.HessianOperator(model, loss, data=[batch], precision=precision)
    sizes = saved_bytes(operator, next(iter(operator.objective.batches()))[1])
    planned = he.plan(model, loss, data=[batch], precision=precision, device="h100-80gb", microbatch=len(batch))
    # Within half a percent: the engine also keeps a number or two per row of a loss.
    assert planned.setting.graph_bytes == pytest.approx(sum(sizes.values()), rel=0.005)
    if precision == "bf16":  # or the test would not tell bf16 from fp32
        assert sizes[torch.bfloat16] > sizes[torch.float32]


def test_traffic_of_bf16_products_is_half_and_that_of_their_casts_is_counted() -> None:
    n, d = 64, 48
    model, data = nn.Linear(d, d, bias=False), [torch.randn(n, d)]
    partition, shape = resolve(model, None), data_shape(data, torch.float32)
    found = JobCounter(model, lambda m, b: m(b).sum(), shape, partition, "bf16").count(None)
    matrices = n * d + d * d
    assert found.forward.bytes == (4 + 2) * matrices + 2 * (matrices + n * d) + 2 * (n * d + 1)


def test_the_setting_is_the_one_that_the_engine_takes() -> None:
    case = gpt()
    block = ["layers.0.attn.wq.weight"]
    whole = he.HessianOperator(case.model, case.loss, block, data=case.data).scheduler.plan.graph_bytes
    asked = {"data": case.data, "steps": 6, "probes": 8, "memory": int(1.75 * whole)}
    used = he.slq(case.model, case.loss, block, **asked, progress=False).manifest["plan"]
    planned = he.plan(case.model, case.loss, block, device="cpu", **asked).setting
    assert planned.microbatch == used["microbatch"] < 3
    assert len(planned.waves) == used["waves"] > 1


def test_a_model_without_weights_is_planned_like_one_with() -> None:
    model, data = small_gpt()
    with torch.device("meta"):
        shell = GPT(CONFIG).eval()
    options = {"device": "h100-80gb", "precision": "bf16", "probes": 2}
    with_weights = he.plan(model, he.losses.causal_lm, data=data, **options)
    without = he.plan(shell, he.losses.causal_lm, data=[batch.to("meta") for batch in data], **options)
    assert without == with_weights or without.record() == with_weights.record()


def test_work_grows_with_tokens_steps_and_probes() -> None:
    model, data = small_gpt()
    blocks = {"first": ["layers.0.attn.wq.weight"]}

    def second(**options: object) -> float:
        plan = he.plan(model, he.losses.causal_lm, blocks, data=data, device="v100-16gb", **options)
        return plan.prediction.parts["second backwards"].flop

    base = second(steps=10, probes=2)
    assert second(steps=30, probes=2) == pytest.approx(3 * base)
    assert second(steps=10, probes=8) == pytest.approx(4 * base)
    assert second(steps=10, probes=2, batches=10) == pytest.approx(5 * base)
    assert second(steps=10, probes=2, tokens=20 * data[0].numel()) == pytest.approx(10 * base)


def test_head_curvature_is_planned_where_the_engine_forms_it_and_costed_by_its_own_formula() -> None:
    config = GPTConfig(vocabulary=4000, context=64, layers=4, heads=2, width=64)
    with torch.device("meta"):
        model, data = GPT(config), [torch.zeros(4, 64, dtype=torch.int64) for _ in range(2)]
    blocks = {"first": ["layers.0.attn.wq.weight"]}
    plan = he.plan(model, he.losses.causal_lm, blocks, data=data, device="a100-40gb", steps=50, probes=3)
    assert any("curvature is formed once: float32, 4 MiB in device memory" in note for note in plan.notes)
    cost = head_cost(4 * 63, 64, 4000, kept_logits=True)
    passes = 50 * 3 * len(data)
    other = next(a for a in plan.alternatives if a.name == "without head curvature")
    saved = passes * (cost.general_flop - cost.apply_flop) - len(data) * cost.form_flop
    assert saved > 0
    assert plan.flop == pytest.approx(other.flop - saved)
    assert plan.prediction.head.flop == pytest.approx(passes * cost.general_flop)
    few = he.plan(model, he.losses.causal_lm, blocks, data=data, device="a100-40gb", steps=1, probes=1)
    assert not any("curvature" in note for note in few.notes)


def test_a_basis_that_does_not_fit_shrinks_or_is_refused_with_the_ways_out() -> None:
    with torch.device("meta"):
        model = nn.Linear(10_000, 10_000, bias=False)
        data = [torch.empty(64, 10_000)]

    def loss(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return m(batch).tanh().square().mean()

    narrow = he.plan(model, loss, data=data, device="v100-32gb", steps=80, probes=2)
    assert narrow.setting.basis == "bf16" and any("basis='bf16'" in note for note in narrow.notes)
    assert len(narrow.setting.waves) == 2
    with pytest.raises(OutOfMemoryError, match=r"One stream of block 'full' .* Use basis='bf16', .*fewer steps"):
        he.plan(model, loss, data=data, device="v100-16gb")
    with pytest.raises(OutOfMemoryError, match="The gradient graph of the smallest micro-batch needs about"):
        he.plan(model, loss, data=data, device="v100-16gb", memory=1000)


def test_arguments_that_make_no_job_are_refused() -> None:
    model, data = small_gpt()
    loss = he.losses.causal_lm
    with pytest.raises(ConfigurationError, match="is not one of cpu, a100-80gb"):
        he.plan(model, loss, data=data, device="a100")
    with pytest.raises(ConfigurationError, match="v100-16gb has no bf16 arithmetic"):
        he.plan(model, loss, data=data, device="v100-16gb", precision="bf16")
    with pytest.raises(ConfigurationError, match="batches or tokens, not both"):
        he.plan(model, loss, data=data, device="v100-16gb", batches=3, tokens=3)
    with pytest.raises(ObjectiveError, match=r"must not read values \(\.item\(\)"):
        he.plan(model, lambda m, b: m(b).sum().item() * m(b).sum(), data=data, device="v100-16gb")


def lazy_model() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3))


BATCHES = [(torch.ones(6, 4), torch.zeros(6, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": "m"}, ConfigurationError, "model must be a torch.nn.Module, not str"),
        ({"model": lazy_model()}, ConfigurationError, r"no shape yet \(0.weight, 0.bias\): run it on one batch first"),
        ({"model": nn.BatchNorm1d(4)}, NonDeterministicError, r"Call model.eval\(\)"),
        ({"loss": "cross-entropy"}, ConfigurationError, "loss must be a function"),
        ({"data": 5}, ObjectiveError, "data must be a list of batches or another re-iterable, not int"),
        ({"data": iter(BATCHES)}, ObjectiveError, r"pass list\(data\)"),
        ({"data": BATCHES[0][0]}, ObjectiveError, r"pass a list of batches: data=\[batch\]"),
        ({"data": {"inputs": BATCHES[0][0]}}, ObjectiveError, r"pass a list of batches: data=\[batch\]"),
        ({"data": ["text"]}, ObjectiveError, "Batch 0 is a str without tensors"),
        ({"data": [torch.ones(0, 4)]}, ObjectiveError, "data is empty"),
        ({"blocks": 7}, BlockError, "blocks=7 is no block specification"),
        ({"microbatch": 0}, ConfigurationError, "microbatch=0 must be a whole number of at least 1"),
        ({"microbatch": -3}, ConfigurationError, "microbatch=-3 must be a whole number of at least 1"),
        ({"memory": 0}, ConfigurationError, "memory=0 must be a positive number of bytes"),
        ({"probes": 0}, ConfigurationError, "probes=0 must be a whole number of at least 1"),
        ({"probes": 10**9}, ConfigurationError, "probes=1000000000 is more than 100,000"),
        ({"steps": -1}, ConfigurationError, "steps=-1 must be a whole number of at least 1"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "a100-80gb"])
def test_what_is_no_job_is_refused_with_cause_and_fix(
    device: str, changed: dict[str, object], error: type[Exception], message: str
) -> None:
    asked = {"model": nn.Linear(4, 3), "loss": he.losses.classification, "data": BATCHES, **changed}
    with pytest.raises(error, match=message):
        he.plan(**asked, device=device)


class Elementwise(nn.Module):
    """No product of matrices anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.scale).square()


@pytest.mark.parametrize("batch", [torch.ones(6, 4), (torch.ones(6, 4),), {"inputs": torch.ones(6, 4)}])
def test_one_batch_of_any_kind_and_a_model_without_products_are_planned(batch: object) -> None:
    def loss(model: nn.Module, given: object) -> torch.Tensor:
        inputs = given["inputs"] if isinstance(given, dict) else given[0] if isinstance(given, tuple) else given
        return model(inputs).mean()

    found = he.plan(Elementwise(), loss, data=[batch], device="h100-80gb", steps=3, probes=2, precision="bf16")
    assert found.job.numel == {"full": 4} and found.setting.microbatch == 6 and found.seconds > 0
    assert found.prediction.parts["second backwards"].flop == 0 < found.prediction.parts["second backwards"].bytes


def test_a_loss_without_data_is_planned_on_this_machine() -> None:
    problem = quadratic(symmetric(torch.linspace(-1, 1, 12)).float())
    plan = he.plan(problem.model, problem.loss, device="cpu", steps=5, probes=2)
    assert plan.calibrated and plan.device.measured and 0 < plan.seconds < 60
    assert "predicted" in plan.summary().splitlines()[0] and "limited by" in plan.summary()


def test_the_record_is_json_with_everything_in_it() -> None:
    model, data = small_gpt()
    plan = he.plan(model, he.losses.causal_lm, paper_blocks(CONFIG), data=data, device="a100-80gb")
    record = json.loads(json.dumps(plan.record()))
    assert record["kind"] == "predicted" and record["device"] == "a100-80gb" and not record["calibrated"]
    assert record["ceilings"]["bandwidth"] == 2.0e12 and record["ceilings"]["product_share"]["fp32"] < 1
    assert list(record["parts"]) == [
        "forward", "first backward", "second backwards", "reorthogonalisation", "quadrature",
    ]  # fmt: skip
    assert all(set(part) == {"flop", "bytes", "seconds", "limit"} for part in record["parts"].values())
    assert set(record["blocks"]) == set(paper_blocks(CONFIG))
    assert record["seconds"] == pytest.approx(sum(part["seconds"] for part in record["parts"].values()))
    assert {"microbatch", "precision", "basis", "streams_per_pass", "waves", "kept_graphs"} <= set(record["setting"])
    assert {"parameters", "graph per micro-batch", "Lanczos vectors"} <= set(record["memory"])
    assert {"name", "flop", "seconds", "note"} == set(record["alternatives"][0])
    at_ceiling = record["alternatives"][-1]
    assert at_ceiling["name"] == "at the data sheet's ceilings" and at_ceiling["seconds"] < record["seconds"]


def test_the_command_prints_text_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.py").write_text(
        "import torch\nfrom torch import nn\nfrom hvp_engine import losses\n\n"
        "def job():\n    with torch.device('meta'):\n"
        "        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))\n"
        "        data = [(torch.empty(6, 4), torch.empty(6, dtype=torch.int64))]\n"
        "    return model, losses.classification, data, {'w': ['*.weight']}\n"
    )

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hvp-engine", "plan", "shapes.py:job", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    shown = call("--device", "h100-80gb", "--batches", "7", "--steps", "5")
    assert "h100-80gb: predicted" in shown and "7 per sweep" in shown and "second backwards" in shown
    record = json.loads(call("--device", "v100-32gb", "--json", "--probes", "3", "--precision", "fp64"))
    assert record["job"]["probes"] == 3 and record["job"]["numel"] == {"w": 35}
    record = json.loads(call("--device", "a100-40gb", "--blocks", "parameter", "--json"))
    assert list(record["blocks"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def job(): raise ValueError('no corpus')",
            r"job raised ValueError: no corpus \(.*job.py, line 1\)",
        ),
        ("def job(x): return x", "job raised TypeError: .* must run, without arguments"),
        ("import there_is_no_such_module", "raised ModuleNotFoundError"),
        ("def job(:", "raised SyntaxError"),
    ],
)
def test_a_function_that_fails_is_reported_with_its_place(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["hvp-engine", "plan", f"{tmp_path}/job.py:job", "--device", "a100-80gb"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_the_papers_job_has_the_papers_sizes() -> None:
    model, _, data, blocks = gpt2_paper.job()
    partition = resolve(model, blocks)
    assert sum(p.numel() for p in model.parameters()) == partition.blocks["full"].numel == 124_373_760
    assert sum(b.numel for name, b in partition.blocks.items() if name != "full") == 66_945_024
    assert len(blocks) == 26 and sum(batch.numel() for batch in data) == 491_520
    few = resolve(model, {"11.c_proj": blocks["11.c_proj"]})
    found = published_counts(model, he.losses.causal_lm, data[0], few)
    assert found.gradient.flop == pytest.approx(7.001e12, rel=1e-3)
    assert found.blocks["11.c_proj"].flop == pytest.approx(6.011e12, rel=1e-3)
    assert found.pruned["11.c_proj"].flop == pytest.approx(1.343e12, rel=1e-3)
