"""Products with the Hessian of a GPT as the stages measure them: by the engine, by an expert, the published way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from baselines.best_practice import BestPracticeHessian
from jobs import SIZES, Job, mean_loss
from timing import alternate, peak_gib, seconds
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.blocks import resolve
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.planning.counting import JobCounter, data_shape
from hvp_engine.problem.precision import Precision, product_mode
from hvp_engine.system.failures import is_out_of_memory

from .clock import Clock, tried
from .runner import Emit

ROUNDS = 5
FULL = "full"


def depths(config: GPTConfig) -> dict[str, list[str]]:
    """Blocks from the shallow ones, whose products pass the whole network, to those beside the head."""
    last = config.layers - 1
    chosen = ((0, "attn.wq"), (last // 3, "c_fc"), (2 * last // 3, "attn.wq"), (last, "c_proj"))
    blocks = {f"{n}.{name.split('.')[-1]}": [f"layers.{n}.{name}.weight"] for n, name in chosen}
    first, *others = blocks
    return {first: blocks[first], FULL: ["*"], "wte": ["wte.weight"], **{name: blocks[name] for name in others}}


def gpt_on(device: torch.device, size: str, batch: int | None = None) -> Job:
    """Return the job of a named size, made on the device; a batch of another size where one is given."""
    config, usual = SIZES[size]
    torch.manual_seed(0)
    with device:
        model = GPT(config).eval()
        tokens = torch.randint(0, config.vocabulary, (batch or usual, config.context))
    return Job(model, [tokens], {name: patterns[0] for name, patterns in paper_blocks(config).items()})


@dataclass
class Engine:
    """The engine on a job.

    Attributes:
        job: Model and data.
        blocks: Patterns by block.
        precision: Arithmetic of the products.
        operator: What multiplies.
        seconds: What making it took.
    """

    job: Job
    blocks: dict[str, list[str]]
    precision: Precision
    operator: he.HessianOperator = field(init=False)
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        began = time.perf_counter()
        self.operator = he.HessianOperator(
            self.job.model, he.losses.causal_lm, self.blocks, data=self.job.data, precision=self.precision
        )
        self.seconds = time.perf_counter() - began

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.operator.device

    def vectors(self, block: str, streams: int = 1) -> dict[str, Tensor]:
        """Draw vectors of unit length for a block."""
        drawn = torch.randn(streams, self.operator.numel[block], device=self.device)
        return {block: drawn / drawn.norm(dim=1, keepdim=True)}

    def facts(self) -> dict[str, Any]:
        """Say what was decided about micro-batches, graphs and passes."""
        plan = self.operator.scheduler.plan
        return {
            "samples": self.job.data[0].shape[0],
            "microbatch": plan.microbatch or self.job.data[0].shape[0],
            "kept_graphs": plan.kept_graphs,
            "streams_per_pass": plan.streams_per_pass,
            "graph_gib": plan.graph_bytes / 2**30,
            "uncompiled": self.operator.uncompiled or "",
        }


class Taken(NamedTuple):
    """Seconds of a product.

    Attributes:
        compiled: As it is once it has been asked for often.
        passes: By backward passes.
    """

    compiled: float
    passes: float


def measure(emit: Emit, clock: Clock, engine: Engine, *, seconds_of_one: float) -> dict[str, Taken]:
    """Emit time and memory of a product with each block, and of building the graph; return the seconds.

    Args:
        emit: Takes the rows.
        clock: The stage's.
        engine: What is measured.
        seconds_of_one: What a block may take, its warm-up included.
    """
    taken: dict[str, Taken] = {}
    label = engine.precision
    for name in engine.blocks:
        if not clock.has(seconds_of_one):
            break
        with tried(emit, f"product, {name}, {label}"):
            vectors = engine.vectors(name)
            began = time.perf_counter()
            engine.operator.matmat(vectors)  # waits
            first = time.perf_counter() - began
            call = partial(engine.operator.sweep, vectors)
            passes = seconds(call, engine.device)  # the fourth product is compiled, and those after it replay it
            taken[name] = Taken(alternate({"": call}, ROUNDS, device=engine.device)[""], passes)
            emit(
                what=f"product, {name}, {label}",
                ms=1e3 * taken[name].compiled,
                ms_by_passes=1e3 * passes,
                first_s=first,
                peak_gib=peak_gib(call, engine.device),
                **engine.facts(),
            )
    if taken and clock.has(seconds_of_one):
        with tried(emit, f"gradient graph, {label}"):
            _measure_graph(emit, engine, next(iter(taken)), taken)
    return taken


def _measure_graph(emit: Emit, engine: Engine, block: str, taken: dict[str, Taken]) -> None:
    """Emit the time of a product whose graph is built anew, without the product."""
    vectors = engine.vectors(block)

    def anew() -> None:
        engine.operator.scheduler.release()
        engine.operator.sweep(vectors)

    whole = alternate({"": anew}, 3, device=engine.device)[""]
    ms = 1e3 * (whole - taken[block].passes)
    emit(what=f"gradient graph, {engine.precision}", ms=ms, peak_gib=peak_gib(anew, engine.device))


def emit_rates(
    emit: Emit, job: Job, blocks: dict[str, list[str]], precision: Precision, taken: dict[str, Taken]
) -> None:
    """Emit the rates of products whose seconds are known, by the planner's count of their operations."""
    with tried(emit, f"rates, {precision}"):
        counted = flop(job, {name: blocks[name] for name in taken}, precision)
        for name, (compiled, _) in taken.items():
            tflop = 1e-12 * counted[name]
            emit(what=f"rate, {name}, {precision}", tflop=tflop, tflops=tflop / compiled)


def flop(job: Job, blocks: dict[str, list[str]], precision: Precision) -> dict[str, float]:
    """Count the operations of one product with each block."""
    partition = resolve(job.model, blocks)
    shape = data_shape(job.data, torch.float32)
    counts = JobCounter(job.model, he.losses.causal_lm, shape, partition, precision).count(shape.samples)
    return {name: work.flop for name, work in counts.blocks.items()}


@contextlib.contextmanager
def plain_arithmetic(precision: Precision) -> Iterator[Callable[[nn.Module, Any], Tensor]]:
    """Hold the precision of products of plain PyTorch; yields the loss, which runs under autocast for bf16."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return mean_loss(model, batch)

    with product_mode(precision):
        yield loss


def measure_expert(emit: Emit, clock: Clock, job: Job, blocks: list[str], precision: Precision) -> None:
    """Emit what fifteen lines of plain PyTorch take: one gradient graph, and one pruned second backward per product."""
    parameters = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
    whole = job.data[0]
    samples = whole.shape[0]
    while samples:
        try:
            with plain_arithmetic(precision) as loss:
                expert = BestPracticeHessian(job.model, loss, [whole[:samples]], job.blocks)
                _measure_expert(emit, clock, expert, parameters, blocks, precision)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        emit(what=f"expert, {precision}: out of memory", samples=samples)
        torch.cuda.empty_cache()
        samples //= 2


def _measure_expert(
    emit: Emit,
    clock: Clock,
    expert: BestPracticeHessian,
    parameters: dict[str, nn.Parameter],
    blocks: list[str],
    precision: Precision,
) -> None:
    batch, device = expert.data[0], expert.data[0].device
    leaves = list(parameters.values())
    build = partial(expert.gradients, batch, leaves)
    build()
    taken = alternate({"": build}, 1, warm_up=False, device=device)[""]
    about = {"samples": batch.shape[0]}
    emit(what=f"expert, gradient graph, {precision}", ms=1e3 * taken, peak_gib=peak_gib(build, device), **about)
    gradients = dict(zip(parameters, build(), strict=True))
    for name in blocks:
        if not clock.has(10 * taken):  # five products, each of them about as long as the last or the graph
            return
        targets = list(parameters) if name == FULL else [expert.blocks[name]]
        vectors = [torch.randn_like(parameters[target]) for target in targets]

        def product(targets: list[str] = targets, vectors: list[Tensor] = vectors) -> object:
            of = [parameters[target] for target in targets]
            return torch.autograd.grad([gradients[t] for t in targets], of, vectors, retain_graph=True)

        taken = alternate({"": product}, 3, device=device)[""]
        peak = peak_gib(product, device)
        emit(what=f"expert, product, {name}, {precision}", ms=1e3 * taken, peak_gib=peak, **about)
