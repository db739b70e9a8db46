"""Power and energy: over a window that a sensor can see, of work that the device really did, and with a number at all.

Boards' sensors update every 20 to 100 ms and average up to 1 s, so a single short event is read as a mixture of busy
and idle: naive readings are 39 % off on average, those over 5 s or 32 repetitions 4.9 % (70 GPUs, arXiv 2312.02741).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.checks.power_bounds import idle_w_of
from validate.checks.trust import slack
from validate.finding import Finding
from validate.wording import counted

WINDOW_S = 5.0  # arXiv 2312.02741
REPETITIONS = 32  # the same: back to back, they stand in for a long window
REPEATED = 2  # runs behind a row whose relative spread is stated, at least
AVERAGE_S = 1.0  # what NVML's plain power reading of Ampere (but A100) and newer averages over
# Energy above idle for the work of the run, measured / simulated: of 436 clean runs none has less than 0.39 (a rail
# that does not feed the memory), of those whose power covers the board none less than 0.76; samples that fell between
# short prefills have 0.00 to 0.02 in the median.
MISSED_SHARE = 0.3
NO_ENERGY = 0.1  # of the idle energy of the time: nothing that is switched on draws less
POWER_METRICS = ("power_w", "energy_j_per_output_tok")


@dataclass(frozen=True)
class Window:
    """What a power figure covers: seconds, as far as the record says, and how many runs back to back are in them."""

    seconds: float
    repetitions: int
    formula: str


def check(evidence: Evidence) -> Iterator[Finding]:
    """Windows that are too short, work that the sensor missed, energy that is a missing value, power of whole calls."""
    powered = [c for c in evidence.cases if any(name in c.measured for name in POWER_METRICS)]
    short = [(case, window) for case in powered if (window := window_of(case.record)) and _too_short(window)]
    known = {case.id for case, _ in short}
    if short:
        yield _short(short)
    missed = [row for case in powered if case.id not in known for row in _missed(case, evidence)]
    if missed:
        yield _missing_work(missed)
    nothing = [(case, share) for case in powered for share in _no_energy(case)]
    if nothing:
        yield _no_value(nothing)
    yield from _notes(powered)


def window_of(r: RunRecord) -> Window | None:
    """The window of a run's power by its measured times; None when they do not tell."""
    runs = max(REPEATED if r.rel_noise is not None else 1, _count(r.flag_value("repetitions:")))
    for seconds, formula in _times(r):
        if seconds is not None:
            return Window(seconds * runs, runs * _in_turn(r), formula + (f" * {runs} runs" if runs > 1 else ""))
    return None


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def _in_turn(r: RunRecord) -> int:
    """How often the same work was done one after the other within the row."""
    if r.load == "closed_loop" and r.num_requests and r.concurrency:
        return max(1, int(r.num_requests / r.concurrency))
    return 1


def _times(r: RunRecord) -> Iterator[tuple[float | None, str]]:
    """Seconds by each way in which a record can tell them, the best first."""
    out, requests = r.output_tok or 0.0, r.num_requests or 0
    if "steady_window" in r.flag_list and r.output_tok_per_s:
        seats = (r.max_num_seqs or 0) * (r.dp or 1) or r.concurrency or 0
        if requests > seats:
            yield (
                (requests - seats) * out / r.output_tok_per_s,
                "(num_requests - seats) * output_tok / output_tok_per_s",
            )
        return
    yield r.duration_s, "duration_s"
    ttft_s, tpot_s = r.ttft_s_mean or r.ttft_s_median or 0.0, r.tpot_s_mean or r.itl_s_mean or r.itl_s_median
    e2e_s = r.e2e_s_mean or r.e2e_s_median
    if e2e_s is None and tpot_s and out > 1:
        e2e_s = ttft_s + tpot_s * (out - 1)
    if e2e_s is None and out <= 1:
        e2e_s = ttft_s or None
    if e2e_s is not None and r.load in ("static_batch", "parallel_sampling"):
        yield e2e_s, "end-to-end time"
    if r.output_tok_per_s and requests and out:
        yield requests * out / r.output_tok_per_s, "num_requests * output_tok / output_tok_per_s"
    if e2e_s is not None and r.load == "closed_loop":
        yield e2e_s * _in_turn(r), "end-to-end time * num_requests / concurrency"


def _too_short(window: Window) -> bool:
    return window.seconds < WINDOW_S and window.repetitions < REPETITIONS


def _short(rows: Sequence[tuple[Case, Window]]) -> Finding:
    worst, window = min(rows, key=lambda row: row[1].seconds)
    longest = max(window.seconds for _, window in rows)
    span = f"{window.seconds:.3g} s" if len(rows) == 1 else f"{window.seconds:.3g} to {longest:.3g} s"
    averaged = " Plain NVML power is an average over 1 s." if window.seconds < AVERAGE_S else ""
    return Finding(
        check="energy_window.short", layer="validity", fault="F9", severity="fail", confidence="likely",
        runs=tuple(case.id for case, _ in rows), metrics=_metrics([case for case, _ in rows]),
        says=f"power over a window of {span} in {counted(len(rows), 'run')}: sensors need {WINDOW_S:g} s, or "
        f"{REPETITIONS}"
        " repetitions back to back",
        evidence={
            "window_s": window.seconds, "window_s_least": WINDOW_S, "repetitions": window.repetitions,
            "repetitions_least": REPETITIONS, "formula": f"window = {window.formula}", "worst_run": worst.id,
            "runs": len(rows),
            **({"power_w": worst.record.power_w} if worst.record.power_w is not None else {}),
        },
        next="repeat the run back to back until the window is 5 s long, read an energy counter once at each end, and"
        f" divide.{averaged}",
    )  # fmt: skip


def _metrics(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(name for name in POWER_METRICS if any(name in case.measured for case in cases))


def _missed(case: Case, evidence: Evidence) -> list[tuple[Case, float, float]]:
    """(case, share, idle watts): measured over simulated energy above idle for the same work, if most of it is missing.

    Of one scope only: a rail has an idle power of its own.
    """
    setup, values, r = case.setup, case.prediction.outcome.values, case.record
    if setup is None or r.power_w is None or "power_w" not in values:
        return []
    idle_w, time_ratio = idle_w_of(case, r, evidence), _time_ratio(case)
    if idle_w is None or values["power_w"] <= 1.5 * idle_w or time_ratio is None:  # hardly stands out from idle
        return []
    share = (r.power_w - idle_w) * time_ratio / (values["power_w"] - idle_w)
    most = MISSED_SHARE / math.exp(slack(evidence, [case], "power_w") / 2.0)
    return [(case, share, idle_w)] if share < most else []


def _time_ratio(case: Case) -> float | None:
    """How much longer the measured work took than the simulated."""
    values, r = case.prediction.outcome.values, case.record
    for name in ("tpot_s_mean", "e2e_s_mean", "duration_s", "itl_s_median", "ttft_s_mean"):
        ours = values.get(name)
        if (seen := getattr(r, name)) is not None and ours:
            return seen / ours
    ours = values.get("output_tok_per_s")
    return ours / r.output_tok_per_s if ours and r.output_tok_per_s else None


def _missing_work(rows: Sequence[tuple[Case, float, float]]) -> Finding:
    worst, share, idle_w = min(rows, key=lambda row: row[1])
    r = worst.record
    return Finding(
        check="energy_window.missed", layer="validity", fault="F9", also=("F5",), severity="warn", confidence="likely",
        runs=tuple(case.id for case, *_ in rows), metrics=_metrics([case for case, *_ in rows]),
        says=f"{counted(len(rows), 'run')} drew hardly more than idle while they computed: {r.power_w:.4g} W with "
        f"{idle_w:.4g} W"
        f" idle is {max(share, 0):.0%} of the energy above idle that this work takes",
        evidence={
            "share": share, "share_low": MISSED_SHARE, "power_w": r.power_w, "idle_w": idle_w,
            "simulated_power_w": worst.prediction.outcome.values["power_w"], "worst_run": worst.id, "runs": len(rows),
            "formula": "(power - idle) * time, measured over simulated",
        },
        next="see which window and which rail or devices the power covers: start-up and idle samples, one device of"
        " several, or a rail that does not feed the memory",
    )  # fmt: skip


def _no_energy(case: Case) -> list[float]:
    """Energy over that of an idle device, where it is next to nothing."""
    setup, r = case.setup, case.record
    if setup is None:
        return []
    idle_w, shares = setup.device.power.idle_w * setup.parallel.world_size, []
    if r.energy_j_per_output_tok is not None and r.output_tok_per_s:
        shares.append(r.energy_j_per_output_tok * r.output_tok_per_s / idle_w)
    if r.power_w is not None:
        shares.append(r.power_w / idle_w)
    return [min(shares)] if shares and min(shares) < NO_ENERGY else []


def _no_value(rows: Sequence[tuple[Case, float]]) -> Finding:
    worst, share = min(rows, key=lambda row: row[1])
    return Finding(
        check="energy_window.no_value", layer="definitions", fault="F5", also=("F2", "F3"), severity="fail",
        confidence="certain", runs=tuple(case.id for case, _ in rows), metrics=_metrics([case for case, _ in rows]),
        says=f"energy next to nothing in {counted(len(rows), 'run')}: {share:.2g} of what the idle devices draw in "
        "that time; a"
        " value that is missing is not zero",
        evidence={
            "share_of_idle": share, "share_low": NO_ENERGY, "worst_run": worst.id, "runs": len(rows),
            "formula": "energy_j_per_output_tok * output_tok_per_s, or power_w, over idle power of all devices",
        },
        next="ask the sensor whether it is supported (P100, Jetson and many virtual GPUs have no energy counter), and"
        " leave the column empty where it is not; else look at units: mJ, kW",
    )  # fmt: skip


def _notes(powered: Sequence[Case]) -> Iterator[Finding]:
    whole = [case.id for case in powered if case.record.flagged("whole_run_power")]
    if whole:
        yield Finding(
            check="energy_window.whole_run", layer="validity", fault="F9", severity="note", confidence="possible",
            runs=tuple(whole), metrics=POWER_METRICS,
            says=f"power of {counted(len(whole), 'run')} is a mean over the whole call, start-up and idle included",
            evidence={"dilution_known": 0.08, "runs": len(whole)},
            next="such means were 8 % below the steady power at low concurrency in one study; compare power at several"
            " batches",
        )  # fmt: skip
    unknown = [case.id for case in powered if window_of(case.record) is None]
    if unknown:
        yield Finding(
            check="energy_window.unverified", layer="validity", fault="F9", severity="note", confidence="possible",
            runs=tuple(unknown), metrics=POWER_METRICS,
            says=f"unverified: how long the window of power was in {counted(len(unknown), 'run')}; no time tells",
            evidence={"window_s_least": WINDOW_S, "runs": len(unknown)},
            next="record duration_s, or the window of the power in seconds",
        )  # fmt: skip
