"""F8: whether the requests that were simulated are those that were served (W1), and what had to be assumed of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from calibration.records import METRICS, RunRecord
from calibration.workloads import workload_of
from simulator.errors import UserError
from validate.cases import Evidence
from validate.checks.request_differences import ARRIVALS, request_differences
from validate.finding import Finding
from validate.wording import counted

DUMMY = "dummy_weights"
POWER_METRICS = ("power_w", "energy_j_per_output_tok")
ASSUMED_REQUESTS = 4  # to ask what is assumed of them: how many there are does not change it


def check(evidence: Evidence) -> Iterator[Finding]:
    """Differences between both sides' requests; contradictions of one; assumptions, grouped."""
    yield from request_differences(evidence)
    yield from _assumptions(evidence)
    yield from _times_of_a_trace(evidence)
    yield from _idle_clients(evidence)
    yield from _dummy_weights(evidence)


# ---- our own side: what had to be assumed


def _assumptions(evidence: Evidence) -> Iterator[Finding]:
    """Notes: what `calibration.workloads` assumed of requests that records do not describe in full."""
    if not evidence.own:
        return
    groups: dict[str, list[str]] = {}
    known: dict[tuple, tuple[str, ...]] = {}
    for case in evidence.cases:
        if case.simulated is None:
            continue
        r = case.record
        key = (r.load, r.length_spread, r.concurrency is None, r.num_requests is None)
        if key not in known:
            known[key] = _assumed(r)
        for sentence in known[key]:
            groups.setdefault(sentence, []).append(case.id)
    for sentence, runs in groups.items():
        yield Finding(
            check="workload.assumed", layer="workload", fault="F8", severity="note", confidence="certain",
            runs=tuple(runs), says=f"unverified: of {counted(len(runs), 'run')} was assumed: {sentence}",
            evidence={"assumption": sentence, "runs": len(runs)},
            next="state num_requests and length_spread, or record the requests themselves (`calibrate collect`)",
        )  # fmt: skip


def _assumed(record: RunRecord) -> tuple[str, ...]:
    """What is assumed of a record like this, asked with few and short requests: it hangs on what is not stated."""
    small = {name: ASSUMED_REQUESTS for name in ("concurrency", "num_requests") if getattr(record, name) is not None}
    try:
        return workload_of(msgspec.structs.replace(record, input_tok=8, output_tok=8, **small)).assumptions
    except UserError:
        return ()


def _times_of_a_trace(evidence: Evidence) -> Iterator[Finding]:
    """Replays of runs give open loops Poisson arrivals: bursts of a trace queue longer at the same mean rate."""
    if not evidence.own:
        return

    def holds(r: RunRecord) -> bool:
        return r.load == "open_loop" and r.flag_value(ARRIVALS) == "trace"

    yield from _of_records(
        evidence, holds, "arrivals", "warn", tuple(name for name in METRICS if name.startswith(("ttft", "e2e"))),
        lambda r: "requests came at the times of a trace, and are simulated as Poisson arrivals of the same mean rate",
        lambda r: {"request_rate_rps": r.request_rate_rps or 0.0},
        "replay the trace itself: simulate traffic --trace",
    )  # fmt: skip


# ---- one side


def _idle_clients(evidence: Evidence) -> Iterator[Finding]:
    """A closed loop with fewer requests than clients is a smaller burst."""

    def holds(r: RunRecord) -> bool:
        return r.load == "closed_loop" and bool(r.num_requests and r.concurrency and r.num_requests < r.concurrency)

    yield from _of_records(
        evidence, holds, "idle_clients", "warn", (),
        lambda r: f"{r.concurrency:g} clients for {r.num_requests} requests: most clients never send",
        lambda r: {"clients": r.concurrency, "requests": r.num_requests},
        "send at least three requests per client, or call the load burst",
    )  # fmt: skip


def _dummy_weights(evidence: Evidence) -> Iterator[Finding]:
    """Power of arithmetic moves by about 40 % with its operands (arXiv 2409.18324), and dummy weights are tiny."""

    def holds(r: RunRecord) -> bool:
        return DUMMY in r.flag_list and any(getattr(r, name) is not None for name in POWER_METRICS)

    yield from _of_records(
        evidence, holds, "dummy_weights", "fail", POWER_METRICS,
        lambda r: "power was measured with dummy weights, whose products draw up to about 40 % less or more than real "
        "ones",
        lambda r: {name: x for name in POWER_METRICS if (x := getattr(r, name)) is not None},
        "measure power and energy with the real weights; times may be used",
    )  # fmt: skip


def _of_records(
    evidence: Evidence, holds: Callable[[RunRecord], bool], name: str, severity: str, metrics: tuple[str, ...],
    says: Callable[[RunRecord], str], shown: Callable[[RunRecord], dict[str, float]], advice: str,
) -> Iterator[Finding]:  # fmt: skip
    """One finding for all records of which something holds; the first of them is shown."""
    found = [case.record for case in evidence.cases if holds(case.record)]
    if found:
        more = "" if len(found) == 1 else f" (first of {len(found)} runs)"
        yield Finding(
            check=f"workload.{name}", layer="workload", fault="F8", severity=severity, confidence="certain",
            runs=tuple(r.run_id for r in found), metrics=metrics,
            says=f"'{found[0].run_id}'{more}: {says(found[0])}",
            evidence={**shown(found[0]), "worst_run": found[0].run_id}, next=advice,
        )  # fmt: skip
