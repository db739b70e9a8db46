"""Both sides' requests, thing by thing: file, arrivals, load, lengths, numbers (W1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibration.records import RunRecord
from calibration.workloads import UNKNOWN_SPREAD, datasets
from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.wording import counted

SAME = 0.01  # of a length or rate: less is rounding and tokenizers
DRAWS_SD = 3.0  # standard errors between the means of two draws from one distribution
TRACE, ARRIVALS, SPEED = "trace_sha256:", "arrivals:", "trace_speed:"
AT_ONCE = ("static_batch", "burst")  # the same where all requests run at a time


@dataclass(frozen=True)
class _Unlike:
    """How two sides differ in one thing."""

    field: str
    measured: str
    simulated: str
    severity: str
    size: float = 1.0  # to name the worst run
    why: str = ""


def request_differences(evidence: Evidence) -> Iterator[Finding]:
    """One finding per thing and severity, and a note for what only one side states."""
    groups: dict[tuple[str, str, str], list[tuple[Case, _Unlike]]] = {}
    unstated: dict[tuple[str, ...], list[str]] = {}
    for case in evidence.cases:
        if case.simulated is None:
            continue
        found = list(_compared(case.record, case.simulated))
        for unlike in found:
            if unlike.severity != "note":
                groups.setdefault((unlike.field, unlike.severity, unlike.why), []).append((case, unlike))
        if missing := tuple(unlike.field for unlike in found if unlike.severity == "note"):
            unstated.setdefault(missing, []).append(case.id)
    for (_, severity, why), pairs in groups.items():
        yield _difference(severity, why, pairs)
    for missing, runs in unstated.items():
        yield Finding(
            check="workload.unstated", layer="workload", fault="F8", severity="note", confidence="certain",
            runs=tuple(runs), says=f"unverified: only one side of {counted(len(runs), 'run')} states "
            f"{', '.join(missing)}",
            evidence={"missing": ", ".join(missing), "runs": len(runs)},
            next="write the lengths, arrivals and numbers of requests into both files",
        )  # fmt: skip


def _difference(severity: str, why: str, found: Sequence[tuple[Case, _Unlike]]) -> Finding:
    worst, unlike = max(found, key=lambda pair: pair[1].size)
    runs, reason = tuple(case.id for case, _ in found), f"; {why}" if why else ""
    return Finding(
        check="workload.differs", layer="workload", fault="F8", severity=severity, confidence="certain", runs=runs,
        says=f"{unlike.field} of {counted(len(runs), 'run')}: {unlike.measured} measured, {unlike.simulated} "
        f"simulated{reason}",
        evidence={
            "field": unlike.field, "measured": unlike.measured, "simulated": unlike.simulated, "worst_run": worst.id,
        },
        next="simulate the very requests that were sent: the same file of lengths, arrivals and shared prefixes",
    )  # fmt: skip


def _compared(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    for ask in (_trace, _arrivals, _load, _lengths, _spread, _numbers):
        yield from ask(measured, simulated)


def _trace(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    """The same file of requests, by its hash."""
    ours, theirs = measured.flag_value(TRACE), simulated.flag_value(TRACE)
    if ours and theirs and not (ours.startswith(theirs) or theirs.startswith(ours)):
        yield _Unlike("the requests' file", ours, theirs, "fail")
    elif bool(ours) != bool(theirs):
        yield _Unlike("the requests' file", ours or "none", theirs or "none", "note")


def _arrivals(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    """Poisson or a trace's own times, at its own speed or another: what queues see besides the mean rate."""
    for flag in (ARRIVALS, SPEED):
        ours, theirs = measured.flag_value(flag), simulated.flag_value(flag)
        if ours and theirs and ours != theirs:
            yield _Unlike(flag.removesuffix(":"), ours, theirs, "fail")


def _load(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    if measured.load == simulated.load:
        return
    seats = measured.max_num_seqs
    alike = {measured.load, simulated.load} == set(AT_ONCE) and (not seats or (_at_a_time(measured) or 0) <= seats)
    if not alike:
        yield _Unlike("load", measured.load, simulated.load, "fail")


def _at_a_time(record: RunRecord) -> float | None:
    """Requests that a load keeps in flight; of a burst those that it begins with."""
    if record.load == "burst":
        return record.num_requests or record.concurrency
    return record.concurrency or (record.num_requests if record.load == "static_batch" else None)


def _lengths(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    """Means of both lengths; of lengths drawn from one distribution they may lie apart by the error of a mean."""
    for name in ("input_tok", "output_tok"):
        ours, theirs = getattr(measured, name), getattr(simulated, name)
        off = _off(ours, theirs)
        if off is None:
            if ours or theirs:
                yield _one_side(name, ours, theirs)
        elif off > SAME:
            by_chance = off <= _chance(measured, simulated, name)
            why = "two draws from one distribution may differ so much" if by_chance else ""
            yield _Unlike(name, f"{ours:g}", f"{theirs:g}", "warn" if by_chance else "fail", off, why)


def _off(ours: float | None, theirs: float | None) -> float | None:
    """Size of log(theirs / ours); None when one of them is not stated."""
    return abs(math.log(theirs / ours)) if ours and theirs else None


def _one_side(name: str, ours: float | None, theirs: float | None) -> _Unlike:
    return _Unlike(name, *("not stated" if x is None else f"{x:g}" for x in (ours, theirs)), "note")


def _chance(measured: RunRecord, simulated: RunRecord, name: str) -> float:
    """How far the means of two independent draws of one distribution lie apart (relative, 3 standard errors)."""
    spread = measured.length_spread or ""
    if spread != (simulated.length_spread or "") or spread in ("", "fixed"):
        return 0.0
    cv = 1.0 / math.sqrt(3.0)  # uniform on [0, 2 L]: the widest of its kind
    if spread.startswith("dataset:"):
        found = datasets().get(spread.removeprefix("dataset:"), UNKNOWN_SPREAD)
        cv = found.input_cv if name == "input_tok" else found.output_cv
    elif spread.startswith("uniform:"):
        cv *= _one_minus_r(spread)
    n = min(x or 1.0 for x in (_requests(measured), _requests(simulated)))
    return DRAWS_SD * cv * math.sqrt(2.0 / n)


def _one_minus_r(spread: str) -> float:
    """Of uniform:r: its standard deviation / mean is (1 - r) / ((1 + r) sqrt(3))."""
    try:
        r = min(1.0, max(0.0, float(spread.removeprefix("uniform:"))))
    except ValueError:
        return 1.0
    return (1.0 - r) / (1.0 + r)


def _requests(record: RunRecord) -> float | None:
    return record.num_requests or record.concurrency


def _spread(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    """The form of the distribution. Equal means hide it, so it labels and does not refuse."""
    ours, theirs = measured.length_spread, simulated.length_spread
    if ours and theirs and ours != theirs and not _same_uniform(ours, theirs):
        yield _Unlike("length_spread", ours, theirs, "warn")
    elif bool(ours) != bool(theirs):
        yield _Unlike("length_spread", ours or "not stated", theirs or "not stated", "note")


def _same_uniform(ours: str, theirs: str) -> bool:
    kinds = [spread.startswith("uniform:") for spread in (ours, theirs)]
    return all(kinds) and math.isclose(_one_minus_r(ours), _one_minus_r(theirs), abs_tol=1e-3)


def _numbers(measured: RunRecord, simulated: RunRecord) -> Iterator[_Unlike]:
    """How many requests at a time, how many per second, how many in all."""
    if measured.load == "open_loop":
        pairs = [("request_rate_rps", measured.request_rate_rps, simulated.request_rate_rps, "fail")]
    else:
        pairs = [("requests at a time", _at_a_time(measured), _at_a_time(simulated), "fail")]
    if measured.load in ("open_loop", "closed_loop"):  # elsewhere they follow from those at a time
        # Runs of other lengths have another share of start and end, and another queue where it grows.
        pairs.append(("num_requests", measured.num_requests, simulated.num_requests, "warn"))
    for name, ours, theirs, severity in pairs:
        off = _off(ours, theirs)
        if off is not None and off > SAME:
            yield _Unlike(name, f"{ours:g}", f"{theirs:g}", severity, off)
        elif off is None and (ours or theirs):
            yield _one_side(name, ours, theirs)
