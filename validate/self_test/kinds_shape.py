"""F7, wrong shape over load, batch or length, and F14, an error that its mean hides."""

from __future__ import annotations

import math

import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import TIMES, retimed, scaled, slower
from validate.self_test.choose import draw, replaced, resimulated
from validate.self_test.injection import Injected, Injector, Size

# AIConfigurator on its own vLLM points: bias of TTFT by concurrency (labelled case AIC-TTFT).
LOAD = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TTFT_BIAS = (0.45, 0.20, 0.04, -0.12, -0.34, -0.63)
HALF_POWER_AT = 3.1  # times slower: the host-bound row of MLE-HOST drew half the power


def _no_queue(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
    """Waiting by a correction factor: the documented bias of TTFT, or a share of it."""
    new = {}
    for case in evidence.cases:
        if case.simulated is None or "ttft_s_mean" not in case.measured or not case.record.concurrency:
            continue
        bias = float(np.interp(math.log(case.record.concurrency), np.log(LOAD), TTFT_BIAS))
        new[case.id] = retimed(case.simulated, ttft=1.0 + share * bias)
    return resimulated(evidence, new, 3)


def _no_saturation(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
    """A simulator whose steps take as long at any load: throughput goes on rising. share: lost growth."""
    alone: dict[tuple, float] = {}
    cases = [c for c in evidence.cases if c.simulated is not None and c.simulated.tpot_s_mean is not None]
    for case in cases:
        key = _curve(case.record)
        alone[key] = min(alone.get(key, math.inf), case.simulated.tpot_s_mean)
    new = {}
    for case in cases:
        factor = (alone[_curve(case.record)] / case.simulated.tpot_s_mean) ** share
        if factor < 1.0:
            new[case.id] = slower(case.simulated, factor)
    return resimulated(evidence, new, 3)


def _curve(record: RunRecord) -> tuple:
    return record.model, record.gpu, record.tp, record.length_spread, *_lengths(record)


def _lengths(record: RunRecord) -> tuple:
    drawn = (record.length_spread or "").startswith("dataset:")
    return () if drawn else (record.input_tok, record.output_tok)


def _no_dispatch(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
    """A simulator without the host's time for a prefill step: a constant, `share` of the shortest TTFT."""
    times = [c.simulated.ttft_s_mean for c in evidence.cases if c.simulated and c.simulated.ttft_s_mean]
    if len(times) < 3:
        return None
    host_s = share * min(times)
    new = {}
    for case in evidence.cases:
        if case.simulated is not None and case.simulated.ttft_s_mean:
            new[case.id] = retimed(case.simulated, ttft=1.0 - host_s / case.simulated.ttft_s_mean)
    return resimulated(evidence, new, 3)


def _other_order(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
    """A simulator whose curves over the prompt's length lie in the opposite order; share: how far they move there."""
    curves: dict[tuple, list[Case]] = {}
    for case in evidence.cases:
        if case.simulated is not None and case.simulated.ttft_s_mean:
            curves.setdefault((case.record.model, case.record.gpu, case.record.concurrency), []).append(case)
    new = {}
    for members in curves.values():
        ranked = sorted(members, key=lambda c: c.record.input_tok)
        for case, other in zip(ranked, reversed(ranked)):
            factor = (other.simulated.ttft_s_mean / case.simulated.ttft_s_mean) ** share
            if case.record.input_tok != other.record.input_tok:
                new[case.id] = retimed(case.simulated, ttft=factor)
    return resimulated(evidence, new, 3)


def _host_bound(bench: Bench, evidence: Evidence, factor: float, rng: np.random.Generator) -> Injected | None:
    """Two runs whose steps wait for the host: slower, at less power."""

    def change(case: Case) -> RunRecord:
        share = 0.5 ** (math.log(factor) / math.log(HALF_POWER_AT))
        return scaled(slower(case.record, factor), ("power_w", "energy_j_per_output_tok"), share)

    fitting = [c for c in evidence.cases if c.record.tpot_s_mean is not None and c.record.power_w is not None]
    return replaced(bench, evidence, draw(fitting, 2, rng), change, 1)


def _cancelling(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
    """Errors of both signs, `size` in the mean of their sizes, with next to none in the mean."""
    cases = [c for c in evidence.cases if c.simulated is not None]
    if len(cases) < 8:
        return None
    errors = rng.normal(0.0, 1.0, len(cases))
    errors -= errors.mean()
    errors *= size / np.abs(errors).mean()
    new = {}
    for case, error in zip(cases, errors.tolist()):
        new[case.id] = slower(case.simulated, max(1.0 + error, 0.05) * _ratio(case))
    return resimulated(evidence, new, 8, math.log1p(size))


def _ratio(case: Case) -> float:
    """measured / simulated of a time: the errors are to be those of the draw."""
    ratios = [value for name, value in case.ratios.items() if name in TIMES]
    return 1.0 / float(np.median(ratios)) if ratios else 1.0


INJECTORS = (
    Injector(
        fault="F7",
        kind="queueing by a correction",
        side="simulated",
        apply=_no_queue,
        materials=("server", "inferencex", "node"),
        sizes=(
            Size(0.03, "0.03 of it"),
            Size(0.3, "0.3 of it"),
            Size(0.6, "0.6 of it"),
            Size(1, "+45 % to -63 %", "AIC-TTFT"),
        ),
    ),
    Injector(
        fault="F7",
        kind="no saturation",
        side="simulated",
        apply=_no_saturation,
        also=("F3",),
        materials=("server", "inferencex", "mlenergy", "edge"),
        sizes=(
            Size(0.02, "0.02 of it"),
            Size(0.3, "0.3 of it"),
            Size(0.6, "0.6 of it"),
            Size(1, "a vertical wall", "MESS-01"),
        ),
    ),
    Injector(
        fault="F7",
        kind="host time of a prefill missing",
        side="simulated",
        apply=_no_dispatch,
        also=("F10",),
        materials=("server", "inferencex", "edge"),
        sizes=(Size(0.02, "0.02"), Size(0.3, "0.3"), Size(1 - 16.5 / 48.9, "16.5 for 48.9 ms", "AIC-SCHED")),
    ),
    Injector(
        fault="F7",
        kind="curves in the opposite order",
        side="simulated",
        apply=_other_order,
        materials=("server", "edge"),
        sizes=(Size(0.01, "0.01 of the way"), Size(0.7, "0.7 of the way"), Size(1, "all the way")),
    ),
    Injector(
        fault="F7",
        kind="limited by the host",
        apply=_host_bound,
        also=("F9",),
        draws=3,
        materials=("server", "mlenergy", "repeats"),
        sizes=(
            Size(1.02, "x1.02"),
            Size(1.2, "x1.2"),
            Size(1.5, "x1.5"),
            Size(3.1, "x3.1, half the power", "MLE-HOST"),
        ),
    ),
    Injector(
        fault="F14",
        kind="errors that cancel",
        side="simulated",
        apply=_cancelling,
        draws=2,
        materials=("server", "repeats", "argonne", "modelcards_vllm", "helm"),
        sizes=(
            Size(0.02, "2 %"),
            Size(0.05, "5 %"),
            Size(0.108, "10.8 %", "LSS-AGG"),
            Size(0.218, "21.8 %", "LSS-AGG"),
        ),
    ),
)
