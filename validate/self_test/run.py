"""The whole self-test: clean material, injections, the shipped runs; on all cores, the same bytes for a seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache

from validate.self_test.bench import Bench
from validate.self_test.injection import Injector
from validate.self_test.kinds import INJECTORS
from validate.self_test.material import FILES, PARTS, Material, campaign, part_of
from validate.self_test.outcome import Cell, Outcome
from validate.self_test.shipped_runs import FileCheck, check_file
from validate.self_test.synthetic import CAMPAIGNS
from validate.self_test.trial import Noise, Said, Trial, attempt, noise_of, said
from validate.suite import CHECKS, run_checks

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ready:
    """A material with what is said of each of its sides while it is clean, and its runs in an alarm."""

    material: Material
    sides: dict[str, tuple[Said, Noise]]
    alarmed: int


@lru_cache(maxsize=1)
def _bench() -> Bench:
    """One for each process: it only remembers."""
    return Bench()


def run_self_test(
    seed: int = 0,
    progress: Progress | None = None,
    *,
    injectors: Sequence[Injector] = INJECTORS,
    files: Sequence[str] = FILES,
    checks: Sequence[str] = CHECKS,
    workers: int | None = None,
) -> Outcome:
    """Inject every class of fault into clean runs and see what the suite says; judge the shipped runs as they are.

    injectors, files, checks: all of them, or some for a quick look; a kind whose materials are not at hand is left out.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        return _run(None, seed, progress, injectors, files, checks)
    with ProcessPoolExecutor(workers) as pool:
        return _run(pool, seed, progress, injectors, files, checks)


def _run(
    pool: Executor | None, seed: int, progress: Progress | None, injectors: Sequence[Injector], files: Sequence[str],
    checks: Sequence[str],
) -> Outcome:  # fmt: skip
    wanted = {name for injector in injectors for name in injector.materials}
    campaigns = [name for name in CAMPAIGNS if name in wanted]
    # The largest files first, so that no core waits for one at the end.
    order = sorted(files, key=lambda name: name not in ("helm.csv", "mlenergy.csv"))
    jobs = [(_file, (name, seed, tuple(checks))) for name in order]
    jobs += [(_campaign, (name, seed, tuple(checks))) for name in campaigns]
    steps = len(jobs) + len(injectors)
    made = _all(pool, jobs, lambda done: progress(done, steps) if progress else None)
    checked = {judged.name: judged for judged, _ in made[: len(order)]}
    ready = {r.material.name: r for r in (*(r for _, parts in made[: len(order)] for r in parts), *made[len(order) :])}
    # By place in the list: functions within functions do not travel between processes.
    tests = [
        (_inject, (INJECTORS.index(i), [ready[m] for m in i.materials if m in ready], tuple(checks), seed))
        for i in injectors
    ]
    found = _all(pool, tests, lambda done: progress(len(jobs) + done, steps) if progress else None)
    cells = [
        Cell(i, size, trials)
        for i, by_size in zip(injectors, found)
        for size, trials in zip(i.sizes, by_size)
        if trials
    ]
    clean = {n: (len(ready[n].material.sides["measurement"].cases), ready[n].alarmed) for n in campaigns}
    return Outcome(seed, tuple(cells), tuple(checked[name] for name in files), clean)


def _all(pool: Executor | None, jobs: Sequence[tuple], tell: Callable[[int], None]) -> list:
    """Results in the order of the jobs."""
    if pool is None:
        out = []
        for work, arguments in jobs:
            out.append(work(*arguments))
            tell(len(out))
        return out
    waiting: list[Future] = [pool.submit(work, *arguments) for work, arguments in jobs]
    for done, _ in enumerate(as_completed(waiting), 1):
        tell(done)
    return [future.result() for future in waiting]


def _file(name: str, seed: int, checks: Sequence[str]) -> tuple[FileCheck, list[Ready]]:
    judged, evidence = check_file(name, checks)
    parts = [part_of(evidence, part, seed) for part in PARTS if PARTS[part].file == name]
    return judged, [_ready(part, checks) for part in parts]


def _campaign(name: str, seed: int, checks: Sequence[str]) -> Ready:
    return _ready(campaign(name, _bench(), seed), checks)


def _ready(material: Material, checks: Sequence[str]) -> Ready:
    sides, alarmed = {}, set()
    for side, evidence in material.sides.items():
        verdict = run_checks(evidence, checks)
        sides[side] = (said(verdict.findings), noise_of(evidence))
        if evidence.own:
            alarmed = {run for finding in verdict.alarms for run in finding.runs}
    return Ready(material, sides, len(alarmed))


def _inject(place: int, materials: Iterable[Ready], checks: Sequence[str], seed: int) -> list[tuple[Trial, ...]]:
    """All magnitudes of one kind, each on all materials that have what it needs."""
    injector = INJECTORS[place]
    out = []
    for size in injector.sizes:
        trials = [
            attempt(injector, size, draw, r.material, *r.sides[injector.side], _bench(), checks, seed)
            for r in materials
            for draw in range(injector.draws)
        ]
        out.append(tuple(trial for trial in trials if trial is not None))
    return out
