"""The doctor: every finding, where it points, and what the command line makes of it."""

from __future__ import annotations

import copy
import json
import linecache
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import gpt, mlp
from test_cli import call
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import hvp_engine as he
from hvp_engine.diagnosis.report import Finding, Report

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.tensor([0, 1, 2, 1]))]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.function(x)  # the line that findings point to
        return hidden


class Model(nn.Module):
    """Two linear layers with a module in between."""

    def __init__(self, function: Any = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.second = nn.Linear(5, 8), Inner(function), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.inner(self.first(x)))
        return logits


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class Frozen(torch.autograd.Function):
    """Its derivative is computed in forward and kept as a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.derivative = 3 * x * x
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.derivative


class Sound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


def examine(model: nn.Module, use: Any = loss, data: Any = DATA, blocks: Any = "parameter") -> Report:
    return he.doctor(model, use, blocks, data=data)


def only(report: Report, code: str) -> Finding:
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, str(report)
    return found[0]


def points_at(finding: Finding, text: str) -> bool:
    assert finding.line is not None, finding
    file, _, number = finding.line.rpartition(":")
    return text in linecache.getline(file, int(number))


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


def test_a_sound_model_is_fit_and_its_cost_is_measured() -> None:
    report = examine(Model(Sound.apply))
    assert report.ok and not report.findings
    assert [check.name for check in report.blocks][1:] == ["first.weight", "first.bias", "second.weight", "second.bias"]
    for check in report.blocks:
        assert not check.wrong and check.asymmetry < 1e-12 and check.finite_difference < 1e-6 and check.curvature > 0
    assert [cost.microbatch for cost in report.costs] == [1, 2, 4]
    assert all(cost.hvp_seconds > 0 and cost.graph_bytes > 0 for cost in report.costs)
    assert report.costs[2].graph_bytes > report.costs[0].graph_bytes
    assert report.samples == 4 and report.replaced == ["cross_entropy"]
    seconds, double = report.job_seconds(100, 1), report.job_seconds(200, 1)
    assert seconds is not None and double is not None and 1.5 * seconds < double < 2.5 * seconds


def test_data_may_be_the_third_argument() -> None:
    report = he.doctor(Model(), loss, DATA)
    assert report.ok and [check.name for check in report.blocks] == ["full"]
    assert he.doctor(Model(), lambda m: loss(m, DATA[0]), ["first.weight"]).ok
    assert he.doctor(Model(), loss, {"w": ["*.weight"]}, data=DATA).ok


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (Once.apply, "Once"),
        (lambda x: torch.cdist(x, x.cos()) @ torch.ones(len(x), 8), "Cdist"),
    ],
)
def test_an_operation_without_second_derivative_is_named_with_module_and_line(function: Any, operation: str) -> None:
    finding = only(examine(Model(function)), "no-second-derivative")
    assert finding.severity == "error" and finding.message.startswith(operation) and finding.fix
    assert finding.module == "inner"
    assert points_at(finding, "cdist" if operation == "Cdist" else "the line that findings point to")


def test_all_operations_without_second_derivative_are_found() -> None:
    def both(x: Tensor) -> Tensor:
        losses = F.ctc_loss(x[:, None].log_softmax(-1), torch.tensor([[1]]), (len(x),), (1,))
        return Once.apply(x * losses)

    def distances(x: Tensor) -> Tensor:
        near = torch.cdist(x, x.cos())
        return (near + torch.cdist(x, x.sin())) @ torch.ones(len(x), 8)

    lines = {f.line for f in examine(Model(distances)).findings if f.code == "no-second-derivative"}
    assert len(lines) == 2
    report = examine(Model(both))
    named = [f.message.partition(" ")[0] for f in report.findings if f.code == "no-second-derivative"]
    assert sorted(named) == ["CtcLoss", "Once"]


def test_a_silently_wrong_derivative_names_blocks_and_suspects() -> None:
    report = examine(Model(lambda x: Sound.apply(Frozen.apply(x))))
    finding = only(report, "wrong-second-derivative")
    assert "first.weight, first.bias;" in finding.message
    assert finding.message.index("Frozen (module 'inner'") < finding.message.index("Sound (module 'inner'")
    assert {check.name: check.wrong for check in report.blocks}["second.weight"] is False
    assert "wrong" in str(report)


def test_detach_inside_the_model_is_a_suspect() -> None:
    finding = only(examine(Model(lambda x: x * x.detach())), "wrong-second-derivative")
    assert "detach at" in finding.message and "test_doctor.py" in finding.message


def test_kinks_and_inner_float32_are_no_errors() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.float()
            return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-3)).to(x.dtype)

    assert examine(Model(F.relu)).ok
    assert examine(Model(Narrow())).ok


def test_dropout_and_batchnorm_are_named_and_the_rest_is_examined_too() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Model(Once.apply).inner, nn.Linear(6, 3))
    before = copy.deepcopy(model.state_dict())
    report = examine(model)
    assert only(report, "dropout-active").module == "2"
    assert only(report, "batchnorm-train").module == "1"
    assert only(report, "no-second-derivative").module == "3"
    assert "random-loss" not in codes(report)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert examine(nn.Sequential(*list(model)[:3], nn.Linear(6, 3)).eval()).ok


def test_random_numbers_are_located_and_the_rest_is_examined_too() -> None:
    def function(x: Tensor) -> Tensor:
        return Frozen.apply(x) + torch.rand(8)

    report = examine(Model(function))
    finding = only(report, "random-loss")
    assert points_at(finding, "torch.rand(8)") and "rand at" in finding.message
    assert only(report, "wrong-second-derivative")
    assert points_at(only(examine(Model(lambda x: F.dropout(x, 0.5))), "random-loss"), "F.dropout")


def test_randomness_outside_pytorch_is_found() -> None:
    numbers = iter(range(1000))
    report = examine(Model(), lambda m, b: loss(m, b) * (1 + next(numbers)))
    assert "outside PyTorch" in only(report, "random-loss").message
    assert "not-examined" in codes(report)


def test_shuffled_changing_and_unordered_data() -> None:
    pairs = [(x, torch.tensor(i % 3)) for i, x in enumerate(torch.randn(32, 5))]
    shuffled = DataLoader(pairs, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    assert only(examine(Model(), data=shuffled), "data-shuffled").severity == "error"
    ordered = DataLoader(pairs, batch_size=4)  # type: ignore[arg-type]
    assert examine(Model(), data=ordered).samples == 32
    assert examine(Model(), data=ordered).ok

    class Noisy:
        def __iter__(self) -> Iterator[Any]:
            yield torch.randn(2, 5), torch.tensor([0, 1])

    class Growing:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            yield from DATA * self.passes

    assert "batch 0 had other contents" in only(examine(Model(), data=Noisy()), "data-changes").message
    assert "1 batches, the next more" in only(examine(Model(), data=Growing()), "data-changes").message
    assert only(examine(Model(), data=set(DATA)), "unordered-data").severity == "warning"


def test_data_that_cannot_be_used() -> None:
    assert "yields no batch" in only(examine(Model(), data=[]), "data-unusable").message
    assert "single batch" in only(examine(Model(), data=X), "data-unusable").message
    assert "only once" in only(examine(Model(), data=iter(DATA)), "data-unusable").message


def test_a_loss_that_raises_is_located() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).sum() + batch[7]

    finding = only(examine(Model(), broken), "loss-fails")
    assert "IndexError" in finding.message and points_at(finding, "batch[7]")


def test_losses_gradients_and_curvatures_that_are_not_finite() -> None:
    assert only(examine(Model(), lambda m, b: loss(m, b) * float("nan")), "loss-not-finite").severity == "error"
    report = examine(Model(), lambda m, b: loss(m, b) + (m(b[0]) * 0).pow(2).sum(1).sqrt().sum())
    assert "first.weight" in only(report, "gradient-not-finite").message
    report = examine(Model(), lambda m, b: loss(m, b) + (m(b[0]) * 0).abs().pow(1.5).sum())
    assert only(report, "curvature-not-finite")


def test_blocks_without_curvature_and_unused_parameters() -> None:
    model = Model()
    model.spare = nn.Parameter(torch.ones(3))
    report = examine(model, lambda m, b: loss(m, b) + m.second.bias.sum() * 0 + m.spare.sum())
    assert report.ok and "(spare)" in only(report, "zero-curvature").message
    report = examine(model)
    assert report.ok and "(spare)" in only(report, "unused-parameter").message


def test_a_bias_that_softmax_cancels_is_flat_not_wrong() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    block = he.Block("key bias", [("0.self_attn.in_proj_bias", slice(8, 16))])
    model = nn.Sequential(layer, nn.Linear(8, 3))
    data = [(torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 1]))]
    report = he.doctor(
        model, lambda m, b: F.cross_entropy(m(b[0]).mean(1), b[1]), [block, "0.linear1.weight"], data=data
    )
    assert report.ok and "(key bias)" in only(report, "zero-curvature").message


def test_tied_frozen_and_low_precision_parameters() -> None:
    case = gpt()
    case.model.ln_f.weight.requires_grad_(False)
    report = he.doctor(case.model, case.loss, case.data)
    assert report.ok
    assert "lm_head.weight is tied to wte.weight" in only(report, "tied-parameter").message
    assert "ln_f.weight" in only(report, "frozen-parameter").message
    half = mlp()
    data = [(x.bfloat16(), y) for x, y in half.data]
    report = he.doctor(half.model.to(torch.bfloat16), half.loss, data)
    finding = only(report, "low-precision")
    assert report.ok and finding.severity == "warning" and "6 parameter(s) are bfloat16" in finding.message


def test_reentrant_checkpointing_is_located_and_the_rest_is_examined_too() -> None:
    def function(x: Tensor) -> Tensor:
        return checkpoint(Frozen.apply, x, use_reentrant=True)

    report = examine(Model(function))
    finding = only(report, "reentrant-checkpoint")
    assert finding.module == "inner" and points_at(finding, "use_reentrant=True")
    assert only(report, "wrong-second-derivative")
    assert examine(Model(lambda x: checkpoint(torch.tanh, x, use_reentrant=False))).ok


def test_compiled_modules_and_functions_are_named() -> None:
    model = Model()
    model.inner = torch.compile(model.inner, backend="aot_eager")
    report = examine(model)
    assert only(report, "compiled-module").module == "inner"
    assert all(not check.wrong for check in report.blocks) and len(report.blocks) == 5
    report = examine(Model(torch.compile(lambda x: x.sin(), backend="aot_eager")))
    assert only(report, "compiled-module").module == "inner"


def test_the_model_is_left_as_it_was() -> None:
    model = Model().double()
    before = copy.deepcopy(model.state_dict())
    he.doctor(model, loss, "parameter", data=[(X.double(), DATA[0][1])], precision="fp64")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_little_time_leaves_blocks_out_and_says_so() -> None:
    report = he.doctor(Model(), loss, "parameter", data=DATA * 3, seconds=0.0)
    assert report.ok and len(report.blocks) == 1
    assert {"blocks-not-reached", "data-partly-read"} <= set(codes(report))


def test_bad_arguments_are_raised() -> None:
    with pytest.raises(he.HvpEngineError, match="Did you mean"):
        examine(Model(), blocks=["first.wieght"])
    with pytest.raises(he.HvpEngineError, match=r"torch\.nn\.Module"):
        he.doctor("model", loss, DATA)  # type: ignore[arg-type]
    with pytest.raises(he.HvpEngineError, match="precision='fp16'"):
        he.doctor(Model(), loss, DATA, precision="fp16")  # type: ignore[arg-type]


JOB = """
import torch
from torch import nn
from hvp_engine import losses


def fit():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data


def unfit():
    model, loss, data = fit()
    return nn.Sequential(model, nn.Dropout(0.5)), loss, data
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("work.py:fit", "--blocks", "parameter"), 0, "Fit: nothing found"),
        (("work.py:unfit",), 1, "dropout-active"),
        (("work.py:absent",), 2, "no function 'absent'"),
        (("work.py:fit", "--blocks", "0.wieght"), 2, "Did you mean '0.weight'"),
    ],
)
def test_exit_codes_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    (tmp_path / "work.py").write_text(JOB)
    assert call(monkeypatch, "doctor", *arguments) == code
    out, err = capsys.readouterr()
    assert text in (err if code == 2 else out)


def test_the_command_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work.py").write_text(JOB)
    assert call(monkeypatch, "doctor", "work.py:unfit", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and report["samples"] == 6 and report["job_seconds"] > 0
    finding = report["findings"][0]
    assert finding["code"] == "dropout-active" and finding["where"] == "module '1'" and "eval()" in finding["fix"]
    assert report["blocks"][0]["wrong"] is False and report["costs"][0]["microbatch"] == 1
