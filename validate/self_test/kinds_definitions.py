"""F5, wrong statistic or definition: a column that is not what its name says, or does not move."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import E2E, POWER, STATISTICS, scaled
from validate.self_test.choose import measured, replaced, resimulated, simulated, with_figures
from validate.self_test.injection import Apply, Injected, Injector, Size

EPOCH_S = 1.7e9  # a wall clock that a monotonic time was subtracted from


def _first_included(record: RunRecord, size: float) -> RunRecord | None:
    """Mean, median and p99 as (last - start) / n, where that changes the mean by this factor at least."""
    n = record.output_tok or 1.0
    changed = {}
    for which in STATISTICS:
        first, gap = getattr(record, f"ttft_s_{which}"), getattr(record, f"tpot_s_{which}")
        if gap is None or first is None or n < 2:
            continue
        changed[f"tpot_s_{which}"] = (first + (n - 1.0) * gap) / n
    if not changed or changed.get("tpot_s_mean", 0.0) < size * (record.tpot_s_mean or 0.0):
        return None
    return with_figures(record, changed)


def _chunks(record: RunRecord, tokens: float) -> RunRecord:
    """Gaps between chunks of several tokens."""
    return scaled(record, ("itl_s_mean", "itl_s_median", "itl_s_p99"), tokens)


def _within_chunks(record: RunRecord, gap_s: float) -> RunRecord | None:
    """Tokens of a chunk arrive together: the median gap is none."""
    return None if record.itl_s_median is None else with_figures(record, {"itl_s_median": gap_s})


def _swapped(one: str, other: str) -> Callable[[RunRecord, float], RunRecord | None]:
    def change(record: RunRecord, size: float) -> RunRecord | None:
        pairs = [(f"{m}_s_{one}", f"{m}_s_{other}") for m in ("ttft", "tpot", "itl", "e2e")]
        pairs = [(a, b) for a, b in pairs if getattr(record, a) is not None and getattr(record, b) is not None]
        figures = {a: getattr(record, b) for a, b in pairs} | {b: getattr(record, a) for a, b in pairs}
        return with_figures(record, figures) if figures else None

    return change


def _dead(*names: str) -> Apply:
    """Columns that say the same in every run: what the median run measured; size: how much of the variation is left."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        having = [c for c in evidence.cases if all(getattr(c.record, n) is not None for n in names)]
        if not having:
            return None
        middle = {n: float(np.median([getattr(c.record, n) for c in having])) for n in names}

        def change(case: Case) -> RunRecord:
            figures = {n: middle[n] * (getattr(case.record, n) / middle[n]) ** size for n in names}
            return with_figures(case.record, figures)

        return replaced(bench, evidence, having, change, 3)

    return apply


def _share_of_e2e(record: RunRecord, share: float) -> RunRecord | None:
    figures = {f"ttft_s_{w}": share * e for w in STATISTICS if (e := getattr(record, f"e2e_s_{w}")) is not None}
    figures = {name: value for name, value in figures.items() if getattr(record, name) is not None}
    return with_figures(record, figures) if figures and (record.output_tok or 0) > 1 else None


def _energy(record: RunRecord, joules: float) -> RunRecord | None:
    return None if record.energy_j_per_output_tok is None else with_figures(record, {"energy_j_per_output_tok": joules})


def _rail(record: RunRecord, share: float) -> RunRecord | None:
    """One rail, written down as the power of the whole module."""
    if record.power_w is None:
        return None
    return msgspec.structs.replace(scaled(record, POWER, share), power_scope="module")


def _counted_twice(record: RunRecord, times: float) -> RunRecord:
    """A mean whose denominator counts each request several times; medians and percentiles are right."""
    return scaled(record, ("ttft_s_mean", "e2e_s_mean"), 1.0 / times)


def _two_clocks(record: RunRecord, offset_s: float) -> RunRecord | None:
    if record.ttft_s_mean is None:
        return None
    names = [f"ttft_s_{w}" for w in STATISTICS if getattr(record, f"ttft_s_{w}") is not None]
    return with_figures(record, {n: getattr(record, n) + offset_s for n in names})


def _constant_latency(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
    """A simulator whose latencies are those of the unloaded system, whatever the load."""
    figures: dict[str, float] = {}
    for case in evidence.cases:
        for name, value in (case.simulated.measured() if case.simulated else {}).items():
            if name.startswith(("ttft", "tpot", "itl")) and name in case.measured:
                figures[name] = min(value, figures.get(name, value))
    new = {}
    for case in evidence.cases:
        if case.simulated is not None:
            theirs = case.simulated.measured()
            fixed = {n: figures[n] * (theirs[n] / figures[n]) ** size for n in figures if n in theirs}
            changed = with_figures(case.simulated, fixed)
            if changed != case.simulated:
                new[case.id] = changed
    return resimulated(evidence, new, 3)


def _flat(record: RunRecord, floor_s: float) -> RunRecord:
    """Kernels that take no less than the host needs to launch them."""
    names = ("tpot_s_mean", "tpot_s_median", "itl_s_mean", "itl_s_median")
    found = {n: getattr(record, n) for n in names}
    return with_figures(record, {n: max(v, floor_s) for n, v in found.items() if v is not None})


def _half_e2e(case: Case, share: float) -> RunRecord:
    """An outer time below an inner one."""
    inner = case.simulated.ttft_s_mean
    figures = {n: share * inner for n in E2E if inner and getattr(case.simulated, n) is not None}
    return with_figures(case.simulated, figures)


def _outer_below_inner(record: RunRecord, share: float) -> RunRecord | None:
    figures = {
        f"e2e_s_{w}": share * first
        for w in STATISTICS
        if (first := getattr(record, f"ttft_s_{w}")) is not None and getattr(record, f"e2e_s_{w}") is not None
    }
    return with_figures(record, figures) if figures else None


INJECTORS = (
    Injector(
        fault="F5",
        kind="TPOT with the first token",
        view="record",
        apply=measured(_first_included),
        materials=("edge", "server", "repeats"),
        sizes=(Size(1.001, "any"), Size(1.1, ">= x1.1"), Size(29.8 / 20, ">= 29.8 for 20 ms", "TPOT-DEF")),
    ),
    Injector(
        fault="F5",
        kind="TPOT with the first token, pairs only",
        apply=measured(_first_included),
        materials=("inferencex",),
        sizes=(Size(1.001, "any"), Size(1.2, ">= x1.2"), Size(1.4, ">= x1.4")),
    ),
    Injector(
        fault="F5",
        kind="gaps between chunks",
        view="record",
        apply=measured(_chunks),
        materials=("server", "repeats", "mlenergy"),
        sizes=(
            Size(1.02, "1.02 tokens"),
            Size(1.2, "1.2 tokens"),
            Size(2, "2 tokens"),
            Size(11.18 / 2.08, "11.18 for 2.08 ms", "ITL-CHUNK"),
        ),
    ),
    Injector(
        fault="F5",
        kind="gaps within chunks",
        view="record",
        apply=measured(_within_chunks),
        materials=("server", "mlenergy"),
        sizes=(Size(1e-6, "median gap 0.00 ms", "ITL-CHUNK"),),
    ),
    Injector(
        fault="F5",
        kind="median and p99 swapped",
        view="record",
        apply=measured(_swapped("median", "p99")),
        materials=("server", "open loop", "mlenergy"),
        sizes=(Size(1, "swapped"),),
    ),
    Injector(
        fault="F5",
        kind="mean and median swapped",
        apply=measured(_swapped("mean", "median")),
        materials=("server", "open loop"),
        sizes=(Size(1, "swapped"),),
    ),
    Injector(
        fault="F5",
        kind="dead column: power",
        view="record",
        apply=_dead("power_w"),
        materials=("server", "node", "mlenergy"),
        sizes=(Size(0, "constant", "LSS-DEAD"), Size(0.8, "0.8 of its range")),
    ),
    Injector(
        fault="F5",
        kind="dead column: TTFT",
        view="record",
        apply=_dead("ttft_s_mean", "ttft_s_median"),
        materials=("server", "open loop", "edge"),
        sizes=(Size(0, "constant", "LSS-DEAD"),),
    ),
    Injector(
        fault="F5",
        kind="dead column: mean batch",
        view="record",
        apply=_dead("batch_mean"),
        materials=("server", "node", "mlenergy"),
        sizes=(Size(0, "constant", "LSS-DEAD"),),
    ),
    Injector(
        fault="F5",
        kind="TTFT as a share of the total",
        view="record",
        apply=measured(_share_of_e2e, 3),
        materials=("server", "edge", "repeats"),
        sizes=(Size(0.05, "5 %", "ER-TTFT5"), Size(0.2, "20 %")),
    ),
    Injector(
        fault="F5",
        kind="no energy counter",
        view="record",
        apply=measured(_energy),
        materials=("server", "edge", "mlenergy"),
        sizes=(Size(1e-9, "0 J", "ENERGY-0J"), Size(1e-4, "0.1 mJ")),
    ),
    Injector(
        fault="F5",
        kind="one rail for the module",
        apply=measured(_rail),
        materials=("edge", "edgereasoning"),
        sizes=(Size(0.99, "0.99"), Size(0.8, "0.8"), Size(0.5, "0.5", "ER-RAIL")),
    ),
    Injector(
        fault="F5",
        kind="mean over too many",
        view="record",
        apply=measured(_counted_twice),
        materials=("server", "open loop", "repeats"),
        sizes=(
            Size(1.01, "/1.01"),
            Size(1.2, "/1.2"),
            Size(2, "/2", "MESS-DENOM"),
            Size(342.6 / 38.8, "38.8 for 342.6", "MESS-DENOM"),
        ),
    ),
    Injector(
        fault="F5",
        kind="two clocks subtracted",
        view="record",
        apply=measured(_two_clocks),
        also=("F6", "F2"),
        materials=("server", "inferencex", "open loop"),
        sizes=(Size(EPOCH_S, "wall - monotonic", "CLOCKS"), Size(1.0, "1 s apart")),
    ),
    Injector(
        fault="F5",
        kind="latency that ignores the load",
        side="simulated",
        apply=_constant_latency,
        materials=("server", "inferencex", "mlenergy"),
        also=("F7",),
        sizes=(Size(0, "constant", "MESS-CONST"), Size(0.5, "half the growth"), Size(0.99, "0.99 of it")),
    ),
    Injector(
        fault="F5",
        kind="launch time for kernel time",
        apply=measured(_flat),
        also=("F9",),
        materials=("server", "mlenergy"),
        sizes=(Size(0.02, "20 ms a step"), Size(0.2, "200 ms a step", "AIC-EAGER")),
    ),
    Injector(
        fault="F5",
        kind="outer time below the inner",
        view="record",
        apply=measured(_outer_below_inner),
        also=("F6",),
        materials=("server", "open loop", "edge"),
        sizes=(Size(24.8 / 44.1, "24.8 for 44.1", "MESS-03"), Size(0.98, "0.98")),
    ),
    Injector(
        fault="F5",
        kind="outer time below the inner, simulated",
        side="simulated",
        apply=simulated(_half_e2e),
        also=("F6",),
        materials=("server", "edge"),
        sizes=(Size(24.8 / 44.1, "24.8 for 44.1", "MESS-03"),),
    ),
)
