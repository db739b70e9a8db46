"""All laws on all GPUs and models, on as many cores as there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from types import ModuleType

from simulator.device import list_devices
from simulator.errors import unknown_name
from validate.laws import conservation, halves, load_curve, memory_laws, monotone, saturation, unloaded
from validate.laws.law import Law, Result
from validate.laws.runs import Runs
from validate.laws.subjects import AS_SHIPPED, KINDS, Misfit, Simulator, Subject, device_of, subject_of

FAMILIES = (unloaded, saturation, load_curve, monotone, conservation, memory_laws, halves)
FEW_JOBS = 3  # that are done before other processes have started
LAWS: dict[str, Law] = {law.number: law for family in FAMILIES for law in family.FAMILY.laws}


@dataclass(frozen=True)
class Held:
    """All laws on one deployment: `tp` devices of `gpu`."""

    gpu: str
    label: str
    tp: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Report:
    """What came of it; `held` and `misfits` in the order of GPUs, then of models."""

    held: tuple[Held, ...]
    misfits: tuple[Misfit, ...]

    def broken(self) -> list[tuple[Held, Result]]:
        """Every law that a deployment does not keep."""
        return [(one, result) for one in self.held for result in one.results if not result.holds]


def check(subject: Subject, families: Iterable[ModuleType] = FAMILIES) -> Held:
    """Every law on one deployment, or those of some families."""
    runs = Runs(subject)
    results = tuple(result for family in families for result in family.check(subject, runs))
    return Held(subject.device.id, subject.kind.label, subject.parallel.tp, results)


def check_gpu(gpu: str, labels: Sequence[str], simulator: Simulator = AS_SHIPPED) -> list[Held | Misfit]:
    """Every law on the models `labels` on one GPU."""
    found: list[Held | Misfit] = []
    for kind in (kind for kind in KINDS if kind.label in labels):
        subject = subject_of(gpu, kind, simulator)
        found.append(subject if isinstance(subject, Misfit) else check(subject))
    return found


def check_all(
    gpus: Iterable[str] = (), models: Iterable[str] = (), progress: Callable[[int, int], None] | None = None
) -> Report:
    """Every law on every GPU and model, or on those named. UserError on an unknown name."""
    ids, labels = _gpus(gpus), _labels(models)
    jobs = [(gpu, (label,)) for gpu in ids for label in labels]
    found: dict[tuple, list[Held | Misfit]] = {}
    for job, of_job in _checked(jobs):
        found[job] = of_job
        if progress is not None:
            progress(len(found), len(jobs))
    everything = [one for job in jobs for one in found[job]]
    return Report(
        tuple(one for one in everything if isinstance(one, Held)),
        tuple(one for one in everything if isinstance(one, Misfit)),
    )


def _checked(jobs: Sequence[tuple]) -> Iterator[tuple[tuple, list[Held | Misfit]]]:
    """Each job with what it found, in any order: in processes of their own, if there is more than a little to do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(jobs) <= FEW_JOBS:
        yield from ((job, check_gpu(*job)) for job in jobs)
        return
    pool = ProcessPoolExecutor(min(cores, len(jobs)))
    try:
        waiting = {pool.submit(check_gpu, *job): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _gpus(names: Iterable[str]) -> list[str]:
    """Ids of data sheets, each once, in the order given; none given: all that ship."""
    found = dict.fromkeys(device_of(name).id for name in names)
    return list(found) or [device.id for device in list_devices()]


def _labels(names: Iterable[str]) -> list[str]:
    """Labels of KINDS; a name without a format stands for all formats of the model."""
    known, found = [kind.label for kind in KINDS], []
    for name in names:
        fitting = [label for label in known if name.lower() in (label, label.partition(":")[0])]
        if not fitting:
            raise unknown_name("model", name, known, f"expected one of {', '.join(known)}")
        found += fitting
    return [label for label in known if label in found] if found else known
