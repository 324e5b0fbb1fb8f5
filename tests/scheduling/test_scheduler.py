"""Order of loops, memory, and giving way when it runs out."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from problems import Case, gpt, mlp

import hvp_engine as he
from hvp_engine.errors import OutOfMemoryError
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.scheduling import graph_sizes, policy, scheduler


def operator(case: Case, **options: object) -> he.HessianOperator:
    made = he.HessianOperator(case.model, case.loss, "parameter", data=case.data, **options)
    assert made.scheduler.plan.streams_per_pass > 0  # measured now, not in the first of the sweeps that are counted
    return made


def ones(op: he.HessianOperator, k: int = 3) -> dict[str, torch.Tensor]:
    return {name: torch.ones(k, n) for name, n in op.numel.items()}


class Builds:
    """Counts how often a gradient graph is built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.parameters: list[set[str]] = []  # of every graph
        original = GradientGraph.__init__

        def counted(graph: GradientGraph, *arguments: object, **options: object) -> None:
            self.count += 1
            original(graph, *arguments, **options)
            self.parameters.append({name for name, gradient in graph.gradients.items() if gradient is not None})

        monkeypatch.setattr(GradientGraph, "__init__", counted)


def test_one_graph_per_micro_batch_is_kept_across_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator(gpt())
    builds = Builds(monkeypatch)
    first = op.matmat(ones(op))
    second = op.matmat(ones(op))
    assert builds.count == 2  # two batches, whatever the number of blocks, vectors and sweeps
    assert op.scheduler.plan.kept_graphs == 2
    for name in first:
        assert torch.equal(first[name], second[name])


def test_a_graph_that_is_not_kept_serves_the_blocks_of_its_sweep_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, rebuilt = operator(gpt()), operator(gpt())
    wanted = kept.matmat(ones(kept))
    monkeypatch.setattr(policy, "GRAPH_SHARE", 0.0)
    builds = Builds(monkeypatch)
    names = sorted(rebuilt.blocks)
    for asked in (names, names[:1], names[1:], names[:1]):
        found = rebuilt.matmat({name: ones(rebuilt)[name] for name in asked})
        for name in asked:
            assert torch.equal(found[name], wanted[name])
    parts = {name: {part.parameter for part in rebuilt.partition.blocks[name].parts} for name in names}
    first, rest = parts[names[0]], set().union(*(parts[name] for name in names[1:]))
    assert builds.parameters == [parameters for parameters in (first | rest, first, rest, first) for _ in range(2)]


def test_blocks_that_no_loss_depends_on_have_no_curvature_alone_either(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "idle": torch.nn.Linear(3, 2)})
    data = [torch.ones(4, 3), torch.ones(2, 3)]
    monkeypatch.setattr(policy, "GRAPH_SHARE", 0.0)
    op = he.HessianOperator(model, lambda m, x: m["used"](x).square().mean(), "module", data=data)
    (idle,) = (name for name in op.blocks if "idle" in name)
    assert not op.matmat({idle: torch.ones(2, op.numel[idle])})[idle].any()


def test_graphs_that_do_not_fit_are_rebuilt_once_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = operator(gpt())
    wanted = roomy.matmat(ones(roomy))
    size = roomy.scheduler.plan.graph_bytes
    tight = operator(gpt(), memory=int(2.5 * size))
    builds = Builds(monkeypatch)
    for _ in range(2):
        found = tight.matmat(ones(tight))
    assert tight.scheduler.plan.kept_graphs == 1
    assert builds.count == 3
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_a_small_budget_splits_the_batches() -> None:
    case = gpt()
    roomy = operator(case)
    wanted = roomy.matmat(ones(roomy))
    tight = operator(case, memory=int(1.5 * roomy.scheduler.plan.graph_bytes))
    assert tight.scheduler.plan.microbatch == 2
    for name, found in tight.matmat(ones(tight)).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-6)


def test_a_hopeless_budget_is_refused_with_numbers() -> None:
    with pytest.raises(OutOfMemoryError, match=r"smallest micro-batch needs about .* KiB"):
        operator(gpt(), memory=1000)


class Failing:
    """Makes products run out of memory while ``too_much`` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, too_much: object) -> None:
        original = GradientGraph.product
        self.calls = 0

        def product(
            graph: GradientGraph, block: object, vectors: torch.Tensor, out: torch.Tensor, *, batched: bool
        ) -> None:
            self.calls += 1
            if too_much(len(vectors), graph.weight):
                raise error
            original(graph, block, vectors, out, batched=batched)

        monkeypatch.setattr(GradientGraph, "product", product)


CPU_ERROR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


LIBRARYS_ERROR = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
TRITONS_ERROR = RuntimeError("Triton Error [CUDA]: out of memory")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_ERROR, MemoryError(), LIBRARYS_ERROR, TRITONS_ERROR]
)
def test_out_of_memory_halves_the_streams_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    op = operator(gpt())
    wanted = op.matmat(ones(op, 8))
    op.scheduler.plan.streams_per_pass = 8
    Failing(monkeypatch, error, lambda streams, weight: streams > 2)
    with caplog.at_level(logging.WARNING, "hvp_engine"):
        found = op.matmat(ones(op, 8))
    assert op.scheduler.plan.streams_per_pass == 2
    assert "streams per pass from here on" in caplog.text
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_out_of_memory_with_one_stream_splits_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator(gpt())
    wanted = op.matmat(ones(op))
    heaviest = max(float((targets != -100).sum()) for _, targets in gpt().data)
    Failing(monkeypatch, CPU_ERROR, lambda streams, weight: weight >= heaviest)
    found = op.matmat(ones(op))
    assert op.scheduler.plan.microbatch == 2
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_out_of_memory_that_nothing_cures_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator(mlp())
    Failing(monkeypatch, CPU_ERROR, lambda streams, weight: True)
    with pytest.raises(OutOfMemoryError, match="one sample and one vector at a time"):
        op.matmat(ones(op))


def test_a_stream_too_large_for_the_budget_names_the_ways_out() -> None:
    case = mlp()
    working = operator(case).scheduler.working_bytes
    with pytest.raises(OutOfMemoryError, match="basis='auto', reorthogonalize='none'"):
        he.slq(case.model, case.loss, data=case.data, steps=10**6, probes=1, memory=working + 40_000)


def test_ragged_numbers_of_vectors_per_block() -> None:
    op = operator(gpt())
    few = {name: torch.ones(1 + i % 3, n) for i, (name, n) in enumerate(op.numel.items())}
    for name, product in op.matmat(few).items():
        assert product.shape == few[name].shape


def test_the_plan_fits_the_largest_batch_whichever_comes_first() -> None:
    case = mlp()
    ordered = [sorted(case.data, key=lambda batch: sign * len(batch[0])) for sign in (1, -1)]
    plans = [operator(Case(case.model, case.loss, data)).scheduler.plan for data in ordered]
    assert plans[0].graph_bytes == plans[1].graph_bytes


class CannotBeBatched(torch.autograd.Function):
    """Looks at a number in its backward pass, which vmap forbids."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos() if grad.sum().item() > -1e30 else grad


def test_operations_that_cannot_be_vmapped_run_one_vector_at_a_time() -> None:
    case = mlp()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(CannotBeBatched.apply(self.inner[0](x)) @ self.inner[0].weight)
            return out

    op = operator(Case(Model(), case.loss, case.data))
    assert op.scheduler.plan.streams_per_pass > 1
    found = op.matmat(ones(op, 6))
    assert "go one by one" in str(op.scheduler.plan.single_passes)
    again = operator(Case(Model(), case.loss, case.data))
    again.scheduler.plan.streams_per_pass = 1
    for name, product in again.matmat(ones(again, 6)).items():
        torch.testing.assert_close(found[name], product)


def test_vectors_of_a_job_leave_passes_less_room_and_what_memory_taught_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = SimpleNamespace(**vars(policy))
    on_gpu.choose_streams_per_pass = lambda graph, vector, budget, on_cpu: policy.choose_streams_per_pass(
        graph, vector, budget, on_cpu=False
    )
    monkeypatch.setattr(scheduler, "policy", on_gpu)
    monkeypatch.setattr(graph_sizes.GraphSizes, "_bytes", lambda self, batch: 10 << 20)
    op = operator(mlp(), memory=1 << 30)
    plan, graph = op.scheduler.plan, op.scheduler.plan.graph_bytes
    assert plan.streams_per_pass == 16
    op.scheduler.reserve(800 << 20)
    assert plan.streams_per_pass == plan.budget // 4 // graph == 4
    op.scheduler.reserve(0)
    assert plan.streams_per_pass == 16
    Failing(monkeypatch, CPU_ERROR, lambda streams, weight: streams > 8)
    op.matmat(ones(op, 12))
    assert plan.streams_per_pass == 8
    op.scheduler.reserve(0)
    assert plan.streams_per_pass == 8
