"""Two figures of one run that must agree by arithmetic: times and their parts, rates and counts, energy and power.

An identity compares means, so it is exact only where all requests are alike; each has a band that says how far the
means of unlike requests may lie apart. Beyond the band a figure is of another window, another run or another unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from calibration.records import RunRecord
from calibration.setup import kv_may_bind
from validate.cases import Case, Evidence
from validate.checks.length_view import cost_per_token
from validate.checks.other_side import alarms_of_simulated
from validate.factors import factor_name
from validate.finding import Finding

# Columns that state what was asked for: where an identity needs one, requests that were other ones break it as well.
COUNTS = frozenset(("input_tok", "output_tok", "num_requests", "request_rate_rps"))
EXACT = 0.02  # relative; the shipped runs that state both sides agree to 0.1 %, rounding of the columns included
LITTLE = 0.05  # real recordings obey the law to 1.8 % (LLMServingSim's, recomputed)
SENSOR = 0.10  # counter against integral of power: twice the sensors' gain error of 5 % (arXiv 2312.02741)
MEANS_UNIFORM, MEANS_DRAWN = 0.10, 0.30  # mean of products against product of means: lengths uniform, or of a data set
FAIL_BEYOND = 0.10  # relative, past the band: no share of failed or unlike requests that a label would cover
FEW_SEATS = 0.2  # of the mean batch that may be decoding at a time: the rest waits for prompts


@dataclass(frozen=True)
class Identity:
    """`ratio` is one side over the other: inside [low, high] of `band`. It is asked for runs that have all `needs`."""

    name: str
    says: str  # the two sides: "A against B"
    formula: str
    metrics: tuple[str, ...]  # columns that contradict each other
    needs: tuple[str, ...]
    applies: Callable[[RunRecord], bool]
    ratio: Callable[[RunRecord], float]
    band: Callable[[RunRecord], tuple[float, float]]
    next: str


def check(evidence: Evidence) -> Iterator[Finding]:
    """One finding per identity that is broken, with all the runs that break it, and one for views across lengths.

    Of the measured figures, and of those of another simulator.
    """
    yield from _of_records(evidence)
    yield from alarms_of_simulated(evidence, _of_records)


def _of_records(evidence: Evidence) -> Iterator[Finding]:
    for identity in IDENTITIES:
        cases = [c for c in evidence.cases if not (identity.name == "decoding_of_batch" and _preempted(c))]
        broken = [(case, ratio, over) for case in cases for ratio, over in _broken(identity, case.record)]
        for severity in ("fail", "warn"):
            rows = [row for row in broken if (row[2] > math.log1p(FAIL_BEYOND)) == (severity == "fail")]
            if rows:
                yield _finding(identity, severity, rows)
    yield from cost_per_token(evidence.cases)


def _preempted(case: Case) -> bool:
    """Whether sequences may have waited between their tokens, and so were not in the running batch all the time."""
    return "preempted" in case.record.flag_list or (case.setup is not None and kv_may_bind(case.setup))


def _broken(identity: Identity, record: RunRecord) -> list[tuple[float, float]]:
    """The ratio and how far beyond its band it is, in log units; nothing where the identity holds or cannot be asked.

    Of figures that are not positive numbers nothing can be said here.
    """
    values = [getattr(record, name) for name in identity.needs]
    if not all(value is not None and value > 0 and math.isfinite(value) for value in values):
        return []
    if not identity.applies(record):
        return []
    ratio, (low, high) = identity.ratio(record), identity.band(record)
    over = max(math.log(ratio / high), math.log(low / ratio) if low else -math.inf)
    return [(ratio, over)] if over > 0 else []


def _finding(identity: Identity, severity: str, rows: Sequence[tuple[Case, float, float]]) -> Finding:
    worst, ratio, _ = max(rows, key=lambda row: row[2])
    low, high = identity.band(worst.record)
    unit = factor_name(ratio, worst.setup)
    named = f", the factor of {unit}" if unit else ""
    where = f"'{worst.id}'" + (f" (worst of {len(rows)} runs)" if len(rows) > 1 else "")
    bound = f"{low:.3g} to {high:.3g}" if low else f"at most {high:.3g}"
    return Finding(
        check=f"identities.{identity.name}", layer="views", fault="F6",
        also=(*(("F2",) if unit else ()), *(("F8",) if COUNTS.intersection(identity.needs) else ())),
        severity=severity, confidence="certain" if _alike(worst.record) else "likely",
        runs=tuple(case.id for case, *_ in rows), metrics=identity.metrics,
        says=f"{identity.says}: the ratio is {ratio:.4g} in {where}, expected {bound}{named}",
        evidence={
            "ratio": ratio, "ratio_low": low, "ratio_high": high, "formula": identity.formula, "worst_run": worst.id,
            "runs": len(rows), **{name: getattr(worst.record, name) for name in identity.needs},
            **({"factor": unit} if unit else {}),
        },
        next=identity.next,
    )  # fmt: skip


def _alike(r: RunRecord) -> bool:
    return r.length_spread == "fixed"


def _means(r: RunRecord) -> float:
    """How far a mean of products may be from the product of the means."""
    if _alike(r):
        return EXACT
    return MEANS_UNIFORM if (r.length_spread or "").startswith("uniform:") else MEANS_DRAWN


def _batch_band(r: RunRecord) -> tuple[float, float]:
    """Prompts that take several steps let some requests end first: their mean time is short of the batch's by less
    than the time in which prompts were computed, which is less than twice the mean time to first token."""
    ttft_s = r.ttft_s_mean if r.ttft_s_mean is not None else 0.0
    return 1.0 - EXACT - min(0.5, 2.0 * ttft_s / r.e2e_s_mean), 1.0 + EXACT


def _around(tolerance: float) -> tuple[float, float]:
    return 1 / (1 + tolerance), 1 + tolerance


def _whole(r: RunRecord) -> bool:
    """Whether rates cover the whole run, not a part of it in which the server was full."""
    return "steady_window" not in r.flag_list


def _together(r: RunRecord) -> bool:
    """Whether all requests start and end together."""
    return r.load in ("static_batch", "parallel_sampling") and _alike(r)


def _counts_requests(r: RunRecord) -> bool:
    """Whether num_requests are those of the run: of samples it is the prompts, of batches it may be all repetitions."""
    return r.load != "parallel_sampling" and not (r.load == "static_batch" and r.num_requests != r.concurrency)


def _several(r: RunRecord) -> bool:
    return r.output_tok is not None and r.output_tok >= 2


def _e2e_of_parts_s(r: RunRecord) -> float:
    return r.ttft_s_mean + r.tpot_s_mean * (r.output_tok - 1)


def _parts_band(r: RunRecord) -> tuple[float, float]:
    low, high = _around(_means(r))
    slack = 0.001 / _e2e_of_parts_s(r)  # 1 ms: what rounding and clocks may do to short requests
    return low / (1 + slack), high + slack


def _little_band(r: RunRecord) -> tuple[float, float]:
    """At the end clients have nothing more to send: up to a round of requests is served by fewer and fewer of them."""
    rounds = r.num_requests / r.concurrency if r.num_requests else 10.0
    return max(0.0, 1 - LITTLE - 1 / max(rounds, 1.0)) or 0.5, 1 + LITTLE


IDENTITIES = (
    Identity(
        "e2e_of_parts", "end-to-end time against time to first token plus time per token times the other tokens",
        "e2e_s_mean / (ttft_s_mean + tpot_s_mean * (output_tok - 1))", ("e2e_s_mean", "ttft_s_mean", "tpot_s_mean"),
        ("e2e_s_mean", "ttft_s_mean", "tpot_s_mean", "output_tok"), _several,
        lambda r: r.e2e_s_mean / _e2e_of_parts_s(r), _parts_band,
        "recompute the three from the times of each request; smaller than its parts: generation stopped early, or the"
        " time per token is taken over other requests; larger: the wait before the first token is left out of TTFT",
    ),
    Identity(
        "tokens_of_run", "tokens per second times the duration against the tokens that were asked for",
        "output_tok_per_s * duration_s / (num_requests * output_tok)", ("output_tok_per_s", "duration_s"),
        ("output_tok_per_s", "duration_s", "num_requests", "output_tok"),
        lambda r: _whole(r) and _counts_requests(r),
        lambda r: r.output_tok_per_s * r.duration_s / (r.num_requests * r.output_tok), lambda r: _around(EXACT),
        "count the tokens of completed requests; fewer: requests failed or stopped early; more: prompts are counted",
    ),
    Identity(
        "total_of_output", "total against output tokens per second",
        "total_tok_per_s / output_tok_per_s / (1 + input_tok / output_tok)", ("total_tok_per_s", "output_tok_per_s"),
        ("total_tok_per_s", "output_tok_per_s", "input_tok", "output_tok"), lambda r: True,
        lambda r: r.total_tok_per_s / r.output_tok_per_s / (1 + r.input_tok / r.output_tok), lambda r: _around(EXACT),
        "see whether the total counts prompts, and whether both are over the same window and the same requests",
    ),
    Identity(
        "rate_of_batch", "tokens per second times the time of the batch against the tokens of the batch",
        "output_tok_per_s * e2e_s_mean / (concurrency * output_tok)", ("output_tok_per_s", "e2e_s_mean"),
        ("output_tok_per_s", "e2e_s_mean", "concurrency", "output_tok"), lambda r: _together(r) and _whole(r),
        lambda r: r.output_tok_per_s * r.e2e_s_mean / (r.concurrency * r.output_tok), _batch_band,
        "see whether the rate is per request or of the batch, with or without prompts, and over which time",
    ),
    Identity(
        "energy_of_power", "energy per token times tokens per second against power",
        "energy_j_per_output_tok * output_tok_per_s / power_w", ("energy_j_per_output_tok", "power_w"),
        ("energy_j_per_output_tok", "output_tok_per_s", "power_w"), lambda r: True,
        lambda r: r.energy_j_per_output_tok * r.output_tok_per_s / r.power_w, lambda r: _around(SENSOR),
        "read the energy counter once at each end of a window of 5 s or more and hold it against the integral of power"
        " over the same window; a counter that is polled fast falls short, and both must cover the same devices",
    ),
    Identity(
        "energy_of_time", "energy per token against power times the time per token of the batch",
        "energy_j_per_output_tok * concurrency * output_tok / (power_w * e2e_s_mean)",
        ("energy_j_per_output_tok", "power_w"),
        ("energy_j_per_output_tok", "power_w", "e2e_s_mean", "concurrency", "output_tok"),
        lambda r: _together(r) and r.output_tok_per_s is None,
        lambda r: r.energy_j_per_output_tok * r.concurrency * r.output_tok / (r.power_w * r.e2e_s_mean),
        lambda r: _around(SENSOR),
        "see whether energy and power cover the same window and the same devices",
    ),
    Identity(
        "little_loop", "requests in the system, by throughput times end-to-end time, against the clients of the loop",
        "output_tok_per_s / output_tok * e2e_s_mean / concurrency", ("output_tok_per_s", "e2e_s_mean"),
        ("output_tok_per_s", "output_tok", "e2e_s_mean", "concurrency"), lambda r: r.load == "closed_loop",
        lambda r: r.output_tok_per_s / r.output_tok * r.e2e_s_mean / r.concurrency, _little_band,
        "see whether the rate is of one replica or of all, whether failed requests count, and whether the clients were"
        " the limit",
    ),
    Identity(
        "little_parts", "requests in the system, by throughput times TTFT and decode time, against the clients",
        "output_tok_per_s / output_tok * (ttft_s_mean + tpot_s_mean * (output_tok - 1)) / concurrency",
        ("output_tok_per_s", "ttft_s_mean", "tpot_s_mean"),
        ("output_tok_per_s", "output_tok", "ttft_s_mean", "tpot_s_mean", "concurrency"),
        lambda r: r.load == "closed_loop" and r.e2e_s_mean is None and _several(r),
        lambda r: r.output_tok_per_s / r.output_tok * _e2e_of_parts_s(r) / r.concurrency,
        lambda r: (_little_band(r)[0] / (1 + _means(r)), _little_band(r)[1] * (1 + _means(r))),
        "see whether TTFT holds the wait in the queue, and whether the rate is of one replica or of all",
    ),
    Identity(
        "decoding_of_batch", "sequences that decode, by throughput times time per token, against the mean batch",
        "output_tok_per_s * tpot_s_mean / batch_mean", ("output_tok_per_s", "tpot_s_mean", "batch_mean"),
        ("output_tok_per_s", "tpot_s_mean", "batch_mean"), _several,
        lambda r: r.output_tok_per_s * r.tpot_s_mean / r.batch_mean,
        lambda r: (FEW_SEATS, r.output_tok / (r.output_tok - 1) * (1 + max(_means(r), LITTLE))),
        "recompute all three over the same window; the mean batch counts running requests of all replicas",
    ),
    Identity(
        "batch_of_system", "the mean running batch against all requests in the system, by throughput times time",
        "batch_mean * output_tok / (output_tok_per_s * e2e_s_mean)", ("batch_mean", "output_tok_per_s", "e2e_s_mean"),
        ("batch_mean", "output_tok", "output_tok_per_s", "e2e_s_mean"), lambda r: _whole(r) and _alike(r),
        lambda r: r.batch_mean * r.output_tok / (r.output_tok_per_s * r.e2e_s_mean), lambda r: (0.0, 1 + LITTLE),
        "see whether end-to-end time starts when a request arrives, and whether the batch counts waiting requests",
    ),
    Identity(
        "decoding_of_requests", "sequences that decode, by throughput times time per token, against all requests",
        "output_tok_per_s * tpot_s_mean / num_requests", ("output_tok_per_s", "tpot_s_mean"),
        ("output_tok_per_s", "tpot_s_mean", "num_requests"),
        lambda r: _counts_requests(r) and _several(r),
        lambda r: r.output_tok_per_s * r.tpot_s_mean / r.num_requests,
        lambda r: (0.0, r.output_tok / (r.output_tok - 1) * (1 + _means(r))),
        "see over which requests the mean time per token is taken: of requests weighed alike, short and slow ones count"
        " as much as long ones",
    ),
    Identity(
        "request_in_run", "the mean time of a request against the time of the whole run",
        "(ttft_s_mean + tpot_s_mean * (output_tok - 1)) / duration_s", ("ttft_s_mean", "tpot_s_mean", "duration_s"),
        ("ttft_s_mean", "tpot_s_mean", "output_tok", "duration_s"), lambda r: _whole(r) and _several(r),
        lambda r: _e2e_of_parts_s(r) / r.duration_s, lambda r: (0.0, 1 + _means(r)),
        "no request lasts longer than the run: recompute means over completed requests",
    ),
    Identity(
        "e2e_in_run", "the mean end-to-end time against the time of the whole run", "e2e_s_mean / duration_s",
        ("e2e_s_mean", "duration_s"), ("e2e_s_mean", "duration_s"), _whole, lambda r: r.e2e_s_mean / r.duration_s,
        lambda r: (0.0, 1 + EXACT), "no request lasts longer than the run: look at units and at the window",
    ),
    Identity(
        "served_of_arrived", "requests served per second against the rate at which they arrived",
        "output_tok_per_s / output_tok / request_rate_rps", ("output_tok_per_s",),
        ("output_tok_per_s", "output_tok", "request_rate_rps"), lambda r: r.load == "open_loop",
        lambda r: r.output_tok_per_s / r.output_tok / r.request_rate_rps,
        lambda r: (0.0, (1 + LITTLE) * (1 + 3 / math.sqrt(r.num_requests or 100))),  # three sd of a Poisson count
        "more cannot be served than arrives: see whether the arrivals were sped up, or the rate counts prompts",
    ),
)  # fmt: skip
