"""Other ways to run a planned job, and what they would take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.planning.asked import AskedJob, CountedJob
from hvp_engine.planning.cost import Calibration, Prediction, predict
from hvp_engine.planning.devices import Device
from hvp_engine.planning.processes import with_sums
from hvp_engine.planning.report import Alternative
from hvp_engine.planning.setting import JobSizes, Setting, fit
from hvp_engine.problem.precision import product_dtype
from hvp_engine.processes.team import Axes
from hvp_engine.scheduling.storages import RESIDENT


@dataclass(frozen=True)
class Sources:
    """What predictions for one job and device start from."""

    asked: AskedJob
    counted: CountedJob
    job: JobSizes
    axes: Axes
    machine: Device
    calibration: Calibration | None

    def fit(self, microbatch: int | None) -> Setting:
        """Fit the job with a given micro-batch."""
        return self.asked.fit(self.job, self.counted, microbatch)

    def predict(self, setting: Setting) -> Prediction:
        """Predict a setting, as the engine will run it."""
        return self._priced(self.job, setting)

    def at_most(self, setting: Setting) -> Prediction:
        """Predict an adaptive job in which every block takes all that it may, set up as for what is expected."""
        job, counted = replace(self.job, at_most=True), self.counted
        whole = fit(
            job,
            counted.graph,
            setting.budget,
            setting.microbatch,
            setting.curvature,
            on_cpu=self.asked.on_cpu,
            rooms=self.asked.rooms,
        )
        return self._priced(job, whole)

    def _priced(self, job: JobSizes, setting: Setting) -> Prediction:
        own = predict(self.counted.counts, job, setting, self.machine, self.calibration)
        return with_sums(own, job, self.axes, self.machine)


def alternatives(sources: Sources, setting: Setting) -> Iterable[Alternative]:
    """Yield other ways to run the job: precisions and basis dtypes of a GPU, head curvature, the ceilings."""
    machine, job = sources.machine, sources.job
    precision = job.settings.precision
    if precision != "fp64" and job.settings.lanczos.kept is not None:
        yield from _other_bases(sources, setting.microbatch, {setting.basis})
        known = {product_dtype(precision): (sources.counted, setting)}  # fp32 and TF32 count the same
        for other in [] if machine.measured else [p for p in machine.peak if p not in ("fp64", precision)]:
            changed = job.with_settings(precision=other, basis=setting.basis)
            dtype = product_dtype(other)
            try:
                if dtype not in known:
                    counted, chosen, _ = sources.asked.count(changed)
                    known[dtype] = counted, chosen
            except OutOfMemoryError:
                yield Alternative(f"precision {other}", None, None, "does not fit")
                continue
            counted, chosen = known[dtype]
            yield from _other_bases(replace(sources, counted=counted, job=changed), chosen.microbatch, set())
    if setting.curvature is not None:
        plain = replace(sources, job=job.with_settings(head_curvature=False, basis=setting.basis))
        found = plain.predict(plain.fit(setting.microbatch))
        yield Alternative("without head curvature", found.flop, found.seconds, "pass head_curvature=False")
    if not machine.measured:
        found = replace(sources, machine=machine.ideal()).predict(setting)
        yield Alternative("at the data sheet's ceilings", found.flop, found.seconds, "no program can be faster")


def _other_bases(sources: Sources, microbatch: int | None, taken: set[str]) -> Iterable[Alternative]:
    """Yield a counted job with every storage in the device's memory but those taken."""
    for basis in RESIDENT:
        if basis in taken:
            continue
        tried = replace(sources, job=sources.job.with_settings(basis=basis))
        label = f"precision {tried.job.settings.precision}, basis {basis}"
        try:
            setting = tried.fit(microbatch)
        except OutOfMemoryError:
            yield Alternative(label, None, None, "does not fit")
            continue
        found = tried.predict(setting)
        samples = "" if microbatch is None else f", micro-batches of {microbatch}"
        yield Alternative(label, found.flop, found.seconds, f"{len(setting.waves)} waves{samples}")
