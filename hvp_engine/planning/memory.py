"""How much memory a job takes at its peak: what the engine allocates, phase by phase, by sizes that were counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from hvp_engine.ops.head.curvature import forming_bytes
from hvp_engine.planning.counting import Counts
from hvp_engine.planning.setting import JobSizes, Setting
from hvp_engine.scheduling import checked, policy
from hvp_engine.scheduling.checked import CheckedSizes
from hvp_engine.scheduling.policy import GraphSize
from hvp_engine.scheduling.waves import WORK_VECTORS

_HOLES = 0.15  # of what comes and goes on a heap that keeps freed memory: holes that nothing fits into (measured)
_FEWER_HOLES = 0.05  # in the test of the second derivative, whose largest pieces go back to the kernel one by one
_BACKWARD = 0.1  # of a graph: what the gradient of a point beside takes above its forward pass
_HELD = 1  # of the work vectors of a stream: its product; the newest is read where it lies, temporaries are counted


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes by which a job's memory rises above the model's, in each phase.

    Attributes:
        steps: Parts of what sweeps and Lanczos vectors take.
        phases: What each phase takes at its peak, the parts of ``steps`` summed among them.
    """

    steps: dict[str, int]
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.phases.values())


@dataclass(frozen=True)
class ModelSizes:
    """What of a model is held besides its own parameters.

    Attributes:
        parameters: Bytes of the model in the working dtype.
        copied: Bytes of the converted copy; 0 where the model itself is differentiated.
        gradient: Bytes of the gradient with respect to the parameters of all blocks.
    """

    parameters: int
    copied: int
    gradient: int

    @classmethod
    def of(cls, model: nn.Module, shell: nn.Module, names: Iterable[str]) -> ModelSizes:
        """Read the sizes off a model and its copy without data in the working dtype.

        Args:
            model: The caller's.
            shell: The copy.
            names: The parameters that blocks touch.
        """
        whole = sum(tensor.nbytes for tensor in (*shell.parameters(), *shell.buffers()))
        copied = any(a.dtype != b.dtype for a, b in zip(model.parameters(), shell.parameters(), strict=True))
        named = dict(shell.named_parameters())
        return cls(whole, whole if copied else 0, sum(named[name].nbytes for name in names))


def predict_memory(
    counts: Counts, graph: GraphSize, job: JobSizes, setting: Setting, model: ModelSizes, *, on_cpu: bool
) -> MemoryPrediction:
    """Add up what is alive at once.

    Args:
        counts: One micro-batch, with what its passes hold.
        graph: Size of a graph by samples.
        job: Sizes.
        setting: How it is run.
        model: The model's sizes.
        on_cpu: Whether libraries take what they take the first time of the same memory.
    """
    held = setting.graph_bytes + model.gradient  # a graph has the values of the gradient at its root
    build = max(0, counts.forward.peak - held, counts.forward.peak + counts.gradient.peak - held)
    passes = max((setting.vectors_per_pass[name] * work.peak for name, work in counts.blocks.items()), default=0)
    beside = _BACKWARD + counts.forward.peak / max(1, setting.graph_bytes)
    if graph.transient > policy.TRANSIENT:  # what convolutions hold inside is not to be counted
        passes = max(passes, int(policy.CONVOLUTION_PASSES * setting.graph_bytes))
    share = passes / held if held else 0.0
    always = {"libraries": policy.LIBRARIES if on_cpu else 0, "model in the working dtype": model.copied}
    kept = setting.kept_graphs - (setting.kept_graphs == setting.microbatches)
    steps = {
        **always,
        "graph per micro-batch": held,
        "temporaries of a pass": max(build, passes) + graph.beside,
        "kept graphs": kept * held,
        "Lanczos vectors": _vectors(job, setting),
        "head curvature": setting.held_bytes,
    }
    holes = _HOLES if on_cpu else 0.0
    steps["holes in the heap"] = int(holes * ((1 + kept) * held + steps["temporaries of a pass"]))
    fixed = sum(always.values())
    phases = {"steps": sum(steps.values())}
    if job.settings.check:
        phases["checks"] = fixed + _checks(job, graph, setting, model, max(share, beside))
    few = None if job.samples is None else min(2, job.samples)
    phases["planning"] = fixed + graph.of(few) + model.gradient + build
    if setting.curvature is not None and counts.head is not None:
        head = counts.head
        forming = forming_bytes(head.tokens, head.hidden_size, head.classes, setting.curvature.dtype)
        phases["head curvature"] = fixed + setting.held_bytes + counts.forward.peak + forming
    return MemoryPrediction(steps, phases)


def _vectors(job: JobSizes, setting: Setting) -> int:
    """Return what the Lanczos vectors of the largest wave take, beside what their rule sets apart for temporaries."""
    item = job.settings.dtype.itemsize
    numel = max(sum(job.numel[block] * count for block, count in wave.items()) for wave in setting.waves)
    return setting.vector_bytes - (WORK_VECTORS - _HELD) * numel * item


def _checks(job: JobSizes, graph: GraphSize, setting: Setting, model: ModelSizes, share: float) -> int:
    """Return what the test of the second derivative takes, with a share of the graph beside it at any time."""
    wide = job.settings.precision != "fp64"
    copy = model.parameters * 8 // job.settings.dtype.itemsize if wide else 0
    widest_transient = policy.transient(torch.float64, convolves=graph.transient > policy.TRANSIENT, on_cpu=True)
    transients = graph.transient, widest_transient
    whole = checked.unmixed(setting.graph_bytes, job.settings.precision)
    sizes = CheckedSizes(setting.microbatch, whole, model.gradient, copy, *transients)
    samples = checked.choose_samples_to_check(sizes, setting.budget, sum(job.products.values()))
    widest = checked.is_checked_in_float64(sizes, setting.budget)
    if graph.transient > policy.TRANSIENT:
        return sizes.bytes_of(samples, widest=widest)
    seen = replace(sizes, transient=1.0 + share, widest_transient=1.0 + share)
    return int((1.0 + _FEWER_HOLES) * seen.bytes_of(samples, widest=widest))
