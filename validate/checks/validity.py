"""Whether a run measures what it is taken for: what its collector saw, long enough, not limited by its client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibration.records import RunRecord
from calibration.setup import Setup
from simulator.precision import compute_dtype
from validate.cases import Case, Evidence
from validate.checks.client_limit import client_limits
from validate.finding import Finding
from validate.wording import counted

TURNS = 3.0  # requests per seat: with fewer, a steady window is shorter than its ramps (56 of 294 of ML.ENERGY's v3)
TURNS_FAIL = 2.0  # then fewer requests start within the window than were started at once before it
LOOP_TURNS = 2.0  # requests per client: with fewer, hardly any of them is sent when another one ends
FULL = 0.8  # of the seats taken on average; below it the KV cache, not the limit, sets the number of running requests
BEHIND = 0.8  # of the arrivals that are served in the time of the run, below which the queue grew
QUEUED = 10.0  # times the time of the prompt alone at the data sheet's peaks: the public runs that are known to queue
# have 8 to 100 times, and unloaded servers reach 30 to 60 % of the peaks
NOISY = 0.10  # relative spread of repeats
WINDOWED = ("tpot_s_mean", "output_tok_per_s", "total_tok_per_s", "batch_mean", "power_w", "energy_j_per_output_tok")
# What collectors write down of a run (docs/collecting.md): beginning of the flag, severity, what it says, what next.
SEEN = (
    ("suspect:throttled", "fail", "heat or a power brake held the clocks down",
     "cool the machine, let it rest between points, and look at the throttle reasons"),
    ("suspect:failed_requests", "fail", "requests failed", "look at the server's log and at timeouts of the client"),
    ("suspect:cut", "fail", "the run ended before its requests", "let it run to its end"),
    ("not_stationary", "warn", "the halves of the run differ", "measure longer; look for warm-up, heat and other load"),
    ("overload", "warn", "the queue grew until the end: waiting times say how long the run was",
     "compare throughput instead of waiting times, or lower the rate"),
    ("preempted", "warn", "sequences were thrown out of the KV cache", "allow fewer sequences or more memory"),
    ("clocks:", "warn", "clocks were held down by a power cap or a setting",
     "compare with the device under the same cap or clocks"),
)  # fmt: skip


def check(evidence: Evidence) -> Iterator[Finding]:
    """What collectors noted, windows that are too short, queues, limits of the client; notes on what is missing."""
    cases = evidence.cases
    yield from _seen(cases)
    yield from _short_windows(cases)
    yield from _short_loops(cases)
    yield from _falling_behind(cases)
    yield from client_limits(evidence)
    yield from _queueing(cases)
    yield from _unverified(cases)


def _ids(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(case.id for case in cases)


def _finding(what: str, severity: str, cases: Sequence[Case], says: str, **more) -> Finding:
    more = {"confidence": "likely", **more}
    return Finding(
        check=f"validity.{what}", layer="validity", fault="F9", severity=severity, runs=_ids(cases), says=says, **more
    )


def _seen(cases: Sequence[Case]) -> Iterator[Finding]:
    for flag, severity, says, what_next in SEEN:
        found = [case for case in cases if _has(case.record, flag)]
        if found:
            reasons = {f for case in found for f in case.record.flag_list if f.startswith(flag)}
            name = flag.removeprefix("suspect:").rstrip(":")
            yield _finding(
                name, severity, found, f"{says} in {counted(len(found), 'run')}, as the collector "
                "saw", confidence="certain",
                evidence={"flags": ", ".join(sorted(reasons)), "runs": len(found)}, next=what_next,
            )  # fmt: skip


def _has(r: RunRecord, flag: str) -> bool:
    return r.flagged(flag) if flag.endswith(":") else flag in r.flag_list


def seats(r: RunRecord) -> float | None:
    """Requests that can run at a time, over all replicas: by the limit, or by the mean batch where KV is the limit."""
    stated = r.max_num_seqs * (r.dp or 1) if r.max_num_seqs else r.concurrency
    if r.batch_mean and (stated is None or r.batch_mean < FULL * stated):
        return r.batch_mean
    return stated


def _short_windows(cases: Sequence[Case]) -> Iterator[Finding]:
    """Requests per seat of figures that are said to be of a steady window."""
    rows = []
    for case in cases:
        r, places = case.record, seats(case.record)
        if "steady_window" in r.flag_list and r.load != "open_loop" and r.num_requests and places:
            rows.append((case, r.num_requests / places, places))
    for severity, low, high in (("fail", 0.0, TURNS_FAIL), ("warn", TURNS_FAIL, TURNS)):
        found = [row for row in rows if low <= row[1] < high]
        if found:
            worst, turns, places = min(found, key=lambda row: row[1])
            yield _finding(
                "short_window", severity, [case for case, *_ in found],
                f"the steady window of {counted(len(found), 'run')} is not longer than its ramps: "
                f"{worst.record.num_requests:g}"
                f" requests for {places:g} seats are {turns:.2f} per seat",
                metrics=WINDOWED,
                evidence={
                    "requests_per_seat": turns, "requests_per_seat_least": TURNS, "seats": places,
                    "num_requests": worst.record.num_requests, "worst_run": worst.id, "runs": len(found),
                    "formula": "num_requests / (max_num_seqs * dp)",
                },
                next=f"send at least {TURNS:g} requests per seat, or take rates over the whole run",
            )  # fmt: skip


def _short_loops(cases: Sequence[Case]) -> Iterator[Finding]:
    found = []
    for case in cases:
        r = case.record
        looped = r.load == "closed_loop" and r.num_requests and (r.concurrency or 0) > 1
        if looped and r.num_requests < LOOP_TURNS * r.concurrency:
            found.append((case, r.num_requests / r.concurrency))
    if found:
        worst, turns = min(found, key=lambda row: row[1])
        yield _finding(
            "short_loop", "warn", [case for case, _ in found],
            f"{counted(len(found), 'closed loop')} with {turns:.2g} requests per client: what is measured is the "
            "first burst",
            evidence={
                "requests_per_client": turns, "requests_per_client_least": LOOP_TURNS, "worst_run": worst.id,
                "runs": len(found), "formula": "num_requests / concurrency",
            },
            next="send ten requests per client and leave out the first of each",
        )  # fmt: skip


def _falling_behind(cases: Sequence[Case]) -> Iterator[Finding]:
    """Open loops in which fewer requests were served per second than arrived, beyond the time of the last ones."""
    found = []
    for case in cases:
        r = case.record
        if r.load == "open_loop" and r.request_rate_rps and r.num_requests and r.duration_s:
            expected_s = r.num_requests / r.request_rate_rps * (1 + 2 / r.num_requests**0.5)
            alone_s = case.floor.get("e2e_s_mean") or 0.0
            share = (expected_s + 2 * alone_s) / r.duration_s
            if share < BEHIND and "overload" not in r.flag_list:
                found.append((case, share))
    if found:
        worst, share = min(found, key=lambda row: row[1])
        r = worst.record
        yield _finding(
            "behind", "warn", [case for case, _ in found],
            f"{counted(len(found), 'open loop')} served less than arrived: {r.num_requests / r.duration_s:.3g} of"
            f" {r.request_rate_rps:.3g} requests per second",
            metrics=tuple(m for m in worst.measured if m.startswith(("ttft", "e2e"))),
            evidence={
                "share": share, "share_low": BEHIND, "request_rate_rps": r.request_rate_rps, "worst_run": worst.id,
                "duration_s": r.duration_s, "num_requests": r.num_requests, "runs": len(found),
            },
            next="label it overload: waiting times grow with the length of the run; compare throughput",
        )  # fmt: skip


def _queueing(cases: Sequence[Case]) -> Iterator[Finding]:
    found = []
    for case in cases:
        r, setup = case.record, case.setup
        ttft_s = r.ttft_s_mean or r.ttft_s_median
        if setup is not None and ttft_s and r.load in ("burst", "open_loop"):
            alone_s = prompt_floor_s(setup)
            if ttft_s > QUEUED * alone_s:
                found.append((case, ttft_s, alone_s))
    if found:
        worst, ttft_s, alone_s = max(found, key=lambda row: row[1] / row[2])
        yield _finding(
            "queueing", "note", [case for case, *_ in found],
            f"overload: TTFT of {counted(len(found), 'run')} is mostly waiting: {ttft_s:.3g} s, of which the prompt "
            "alone takes"
            f" {1e3 * alone_s:.3g} ms at the data sheet's peaks",
            metrics=("ttft_s_mean", "ttft_s_median", "ttft_s_p99"),
            evidence={
                "ttft_s": ttft_s, "prompt_floor_s": alone_s, "ratio": ttft_s / alone_s, "ratio_high": QUEUED,
                "formula": "max(2 * active parameters * input_tok / (n * peak), weight bytes / (n * bandwidth))",
                "worst_run": worst.id, "runs": len(found),
            },
            next="such a TTFT tells the throughput of the run, not the speed of prompts",
        )  # fmt: skip


def prompt_floor_s(setup: Setup) -> float:
    """Seconds of one prompt alone at the data sheet's peaks: B2 of the taxonomy, and weights are read once."""
    active, devices = setup.model.active_parameters(embedding=False), setup.parallel.tp * setup.parallel.pp
    peak = setup.device.compute.peak_flop_per_s[compute_dtype(setup.device, setup.precision.base_activation)]
    byte = active * setup.precision.weight_byte
    return max(2.0 * active * setup.input_tok / peak, byte / setup.device.memory.bandwidth_byte_per_s) / devices


def _unverified(cases: Sequence[Case]) -> Iterator[Finding]:
    """What nothing is recorded of, once per file."""
    cold = [case for case in cases if "warm_up" not in case.record.flag_list]
    if cold:
        yield _finding(
            "warm_up", "note", cold, f"unverified: warm-up before {counted(len(cold), 'run')} is not recorded",
            confidence="possible", evidence={"runs": len(cold)},
            next="run every point once before it is measured, and flag it warm_up",
        )  # fmt: skip
    noisy = [case for case in cases if (case.record.rel_noise or 0.0) > NOISY]
    if noisy:
        worst = max(noisy, key=lambda case: case.record.rel_noise)
        yield _finding(
            "noisy", "note", noisy,
            f"repeats of {counted(len(noisy), 'run')} lie over {NOISY:.0%} apart: {worst.record.rel_noise:.0%} in "
            "the worst",
            evidence={
                "rel_noise": worst.record.rel_noise, "rel_noise_high": NOISY, "worst_run": worst.id, "runs": len(noisy),
            },
            next="look for other load, clocks that are not locked, and heat; no error below the noise is one",
        )  # fmt: skip
