"""F8, another workload: the requests that were served are not those of the record, or of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import POWER, retimed, scaled
from validate.self_test.choose import as_run_under, measured, replaced, simulated
from validate.self_test.injection import Apply, Injected, Injector, Size

replace = msgspec.structs.replace


def _served(change: Callable[[RunRecord, float], dict[str, Any] | None]) -> Apply:
    """What other requests would have measured, under the record's label."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        def one(case: Case) -> RunRecord | None:
            fields = change(case.record, size)
            return None if not fields else as_run_under(bench, case, replace(case.record, **fields))

        return replaced(bench, evidence, evidence.cases, one, 3)

    return apply


def _cached(record: RunRecord, factor: float) -> RunRecord | None:
    return None if record.ttft_s_mean is None else retimed(record, ttft=factor)


def _said(change: Callable[[RunRecord, float], dict[str, Any]]) -> Apply:
    """Another simulator's file whose requests are others; its figures are what they are."""
    return simulated(lambda case, size: replace(case.simulated, **change(case.simulated, size)))


def _burst(record: RunRecord, size: float) -> dict[str, Any]:
    return {"load": "burst", "request_rate_rps": None, "concurrency": None}


def _longer(column: str) -> Callable[[RunRecord, float], dict[str, Any]]:
    return lambda record, size: {column: max(1.0, round((getattr(record, column) or 1.0) * size))}


_FACTORS = (Size(1.02, "x1.02"), Size(1.25, "x1.25"), Size(2, "x2"), Size(0.5, "x0.5"))
INJECTORS = (
    Injector(
        fault="F8",
        kind="prompts that were cached",
        apply=measured(_cached),
        also=("F1",),
        materials=("server", "open loop", "inferencex"),
        sizes=(
            Size(0.99, "TTFT /1.01"),
            Size(1 / 1.5, "TTFT /1.5"),
            Size(1 / 5, "TTFT /5", "BENCH-IGN"),
            Size(0.1, "TTFT /10"),
        ),
    ),
    Injector(
        fault="F8",
        kind="shared prefixes that were not sent",
        apply=measured(_cached),
        also=("F1",),
        materials=("server", "open loop", "inferencex"),
        sizes=(
            Size(1.01, "TTFT x1.01"),
            Size(1.5, "TTFT x1.5"),
            Size(4, "TTFT x4", "BENCH-IGN"),
            Size(6, "TTFT x6", "BENCH-IGN"),
        ),
    ),
    Injector(
        fault="F8",
        kind="a burst for Poisson arrivals",
        apply=_served(_burst),
        materials=("open loop",),
        sizes=(Size(1, "burst"),),
    ),
    Injector(
        fault="F8",
        kind="another rate of arrivals",
        materials=("open loop",),
        apply=_served(lambda r, size: {"request_rate_rps": r.request_rate_rps * size} if r.request_rate_rps else None),
        sizes=(Size(1.02, "x1.02"), Size(1.3, "x1.3"), Size(2, "x2"), Size(0.5, "x0.5")),
    ),
    Injector(
        fault="F8",
        kind="longer prompts than said",
        apply=_served(_longer("input_tok")),
        materials=("server", "open loop", "edge"),
        sizes=_FACTORS,
    ),
    Injector(
        fault="F8",
        kind="other answers than said",
        apply=_served(_longer("output_tok")),
        materials=("server", "open loop", "argonne"),
        sizes=_FACTORS,
    ),
    Injector(
        fault="F8",
        kind="other prompts simulated",
        side="simulated",
        apply=_said(_longer("input_tok")),
        materials=("server", "mlenergy", "edge"),
        sizes=_FACTORS,
    ),
    Injector(
        fault="F8",
        kind="other arrivals simulated",
        side="simulated",
        apply=_said(_burst),
        materials=("open loop", "server"),
        sizes=(Size(1, "burst"),),
    ),
    Injector(
        fault="F8",
        kind="other number of clients simulated",
        side="simulated",
        materials=("server", "inferencex"),
        apply=_said(_longer("concurrency")),
        sizes=(Size(2, "x2"), Size(0.5, "x0.5")),
    ),
    Injector(
        fault="F8",
        kind="dummy weights",
        apply=measured(lambda r, size: scaled(r, POWER, size)),
        materials=("repeats", "mlenergy", "server"),
        sizes=(Size(0.99, "power x0.99"), Size(0.8, "power x0.8"), Size(0.6, "power x0.6", "DUMMY")),
    ),
)
