"""F3, physically impossible, and F4, above the simulator's ceiling."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import repowered, retimed, scaled, slower
from validate.self_test.choose import draw, replaced, resimulated
from validate.self_test.injection import Apply, Injected, Injector, Size

RUNS = 3  # that beat a bound
DECODE, FIRST = "tpot_s_mean", "ttft_s_mean"


def _beats(metric: str, moved: Callable[[RunRecord, float], RunRecord]) -> Apply:
    """Some runs `size` times faster than the data sheet allows."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        drawn = draw([c for c in evidence.cases if metric in c.floor and metric in c.measured], RUNS, rng)

        def change(case: Case) -> RunRecord:
            return moved(case.record, case.floor[metric] / size / case.measured[metric])

        return replaced(bench, evidence, drawn, change, RUNS, abs(math.log(size)))

    return apply


def _power(limit: bool) -> Apply:
    """Some runs with `size` times the power limit, or so many times below idle."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        drawn = draw([c for c in evidence.cases if "power_w" in c.measured and c.setup], RUNS, rng)

        def change(case: Case) -> RunRecord:
            power = case.setup.device.power
            bound_w = (power.limit_w * size if limit else power.idle_w / size) * (case.record.n_gpus or 1)
            return repowered(case.record, bound_w / case.record.power_w)

        return replaced(bench, evidence, drawn, change, RUNS, abs(math.log(size)))

    return apply


def _full_budget(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
    """A simulator that gives all memory to the KV cache: more sequences run than fit, at `size` times the rate."""
    new = {}
    for case in evidence.cases:
        theirs = case.simulated
        if theirs is None or theirs.batch_mean is None or theirs.batch_mean > 0.9 * (case.record.concurrency or 1):
            continue  # every client has a seat: the cache does not bind
        batch = {"batch_mean": min(theirs.batch_mean * size, case.record.concurrency)}
        new[case.id] = msgspec.structs.replace(scaled(slower(theirs, 1.0 / size), ("kv_capacity_tok",), size), **batch)
    return resimulated(evidence, new, RUNS)


def _low_ceiling(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
    """A simulator whose best efficiency of memory is `size` times below the best that was measured."""
    reached = {
        c.id: c.floor[DECODE] / c.measured[DECODE] for c in evidence.cases if DECODE in c.floor and DECODE in c.measured
    }
    if len(reached) < RUNS:
        return None
    ceiling, new = max(reached.values()) / size, {}
    for case in evidence.cases:
        if case.simulated is None or case.id not in reached or case.simulated.tpot_s_mean is None:
            continue
        over = case.floor[DECODE] / case.simulated.tpot_s_mean / ceiling
        if over > 1.0 and reached[case.id] > ceiling:
            new[case.id] = retimed(case.simulated, gaps=over)
    return resimulated(evidence, new, 1, math.log(size))


def _faster_decode(record: RunRecord, factor: float) -> RunRecord:
    return retimed(record, gaps=factor)


def _faster_first(record: RunRecord, factor: float) -> RunRecord:
    return retimed(record, ttft=factor)


def _more_tokens(record: RunRecord, factor: float) -> RunRecord:
    """Every time and rate of the run."""
    return slower(record, factor)


_BEATS = (Size(1.01, "x1.01"), Size(1.05, "x1.05"), Size(1.2, "x1.2"), Size(1.46, "146 %", "MESS-01"))
INJECTORS = (
    Injector(
        fault="F3",
        kind="beats the bandwidth",
        view="record",
        apply=_beats(DECODE, _faster_decode),
        draws=2,
        materials=("server", "mlenergy", "edgereasoning", "inferencex"),
        sizes=(*_BEATS, Size(2.66, "266 %", "AIC-L2"), Size(261 / 4, "4 for 261 ns", "MESS-4NS")),
    ),
    Injector(
        fault="F3",
        kind="beats the peak",
        view="record",
        apply=_beats(FIRST, _faster_first),
        draws=2,
        materials=("server", "edge", "inferencex"),
        sizes=(*_BEATS, Size(2, "x2")),
    ),
    Injector(
        fault="F3",
        kind="beats both, end to end",
        view="record",
        apply=_beats("e2e_s_mean", _more_tokens),
        draws=2,
        materials=("argonne", "modelcards_vllm", "helm"),
        sizes=(*_BEATS, Size(2, "x2", "ARG-FAST")),
    ),
    Injector(
        fault="F3",
        kind="power above the limit",
        view="record",
        apply=_power(True),
        draws=2,
        materials=("server", "mlenergy", "node"),
        sizes=(Size(1.02, "x1.02"), Size(1.1, "x1.1"), Size(1.5, "x1.5")),
    ),
    Injector(
        fault="F3",
        kind="power below idle",
        view="record",
        apply=_power(False),
        draws=2,
        materials=("server", "mlenergy", "node"),
        sizes=(Size(1.02, "/1.02"), Size(1.5, "/1.5"), Size(5, "/5")),
    ),
    Injector(
        fault="F3",
        kind="all memory for the KV cache",
        side="simulated",
        also=("F1",),
        apply=_full_budget,
        materials=("full cache",),
        sizes=(Size(1.02, "x1.02"), Size(1.5, "x1.5"), Size(883.7 / 192.4, "883.7 for 192.4 tok/s", "AIC-KIMI")),
    ),
    Injector(
        fault="F4",
        kind="efficiency below what was measured",
        side="simulated",
        apply=_low_ceiling,
        materials=("server", "repeats", "mlenergy", "edgereasoning", "edge"),
        sizes=(
            Size(1.01, "x1.01"),
            Size(292 / 281.2, "292 over 281.2 GB/s", "MESS-292"),
            Size(162 / 152.8, "162 over 152.8 GB/s", "ER-CEIL"),
            Size(1.15, "x1.15"),
            Size(1.4, "x1.4"),
        ),
    ),
)
