"""What users and operators of a server see of a run of traffic: numbers from its records.

Definitions are those of `SCHEMA.md` of the reference data, which are those of vLLM's `vllm bench serve`:

    TTFT    first_token_s - arrival_s, queueing included
    TPOT    (finished_s - first_token_s) / (output_tok - 1), per request; one-token outputs have none
    ITL     gap between successive tokens of a sequence, over all tokens of all requests
    E2E     finished_s - arrival_s
    queue   scheduled_s - engine_s: in the engine's queue, until the first step that computes a token of it

Refused requests are counted and are in no latency. The run lasts from 0 to `Served.end_s`. Figures of the whole server
are summed over its replicas; a share is of all replicas' time or blocks unless it says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulator.statistics import repeated_quantiles
from simulator.traffic.served import RequestRecords, Served, StepRecords

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
STEADY_SHARES = (0.1, 0.9)  # the steady window: while this share of the requests had finished
STEADY_REQUESTS = 20  # fewer than this have no steady window
STEADY_LEAST = 0.5  # of the run: a shorter window says that most requests ended together, and nothing was steady
OVERLOAD_SHARE = 0.05  # of all requests still waiting when the last one arrives
OVERLOAD_REQUESTS = 8


@dataclass(frozen=True)
class Goodput:
    """Limits on a request's latencies [s]; None: no limit. A request that meets all of them is good."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits that were set, by latency."""
        found = {name: getattr(self, name) for name in ("ttft_s", "tpot_s", "e2e_s")}
        return {name: value for name, value in found.items() if value is not None}


def latencies(requests: RequestRecords) -> dict[str, np.ndarray]:
    """`ttft_s`, `tpot_s`, `e2e_s` and `queue_s` (N,) of every request; NaN where it has none."""
    several = requests.output_tok > 1
    writing = requests.finished_s - requests.first_token_s
    gaps = np.where(several, requests.output_tok - 1, 1)
    return {
        "ttft_s": requests.first_token_s - requests.arrival_s,
        "tpot_s": np.where(several, writing / gaps, np.nan),
        "e2e_s": requests.finished_s - requests.arrival_s,
        "queue_s": requests.scheduled_s - requests.engine_s,
    }


def distribution(values: np.ndarray) -> dict[str, float]:
    """mean, std, min, p50, p90, p99 and max of the values that are numbers; NaN when there are none."""
    found = values[~np.isnan(values)]
    if not len(found):
        return dict.fromkeys(("mean", "std", "min", *QUANTILES, "max"), math.nan)
    quantiles = np.quantile(found, list(QUANTILES.values()))
    return {
        "mean": float(found.mean()),
        "std": float(found.std()),
        "min": float(found.min()),
        **dict(zip(QUANTILES, quantiles.tolist())),
        "max": float(found.max()),
    }


def token_gaps(served: Served) -> dict[str, float]:
    """`distribution` of ITL: every stretch's mean step stands for its gaps, and each torn gap for itself."""
    steps = served.steps
    apart = steps.gaps > 0
    values = np.concatenate((steps.duration_s[apart] / steps.steps[apart], served.torn_gap_s))
    counts = np.concatenate((steps.gaps[apart], np.ones(len(served.torn_gap_s), dtype=np.int64)))
    total = int(counts.sum())
    if not total:
        return distribution(np.empty(0))
    mean = float(values @ counts) / total
    quantiles = repeated_quantiles(values, counts, tuple(QUANTILES.values()))
    return {
        "mean": mean,
        "std": math.sqrt(float((values - mean) ** 2 @ counts) / total),
        "min": float(values.min()),
        **dict(zip(QUANTILES, quantiles.tolist())),
        "max": float(values.max()),
    }


def traffic_metrics(served: Served, goodput: Goodput | None = None) -> dict[str, float]:
    """Every number of this module, flat, with units in the keys."""
    found = latencies(served.requests)
    values = _counts(served)
    for name in LATENCIES:
        spread = token_gaps(served) if name == "itl_s" else distribution(found[name])
        values |= {f"{name}_{which}": value for which, value in spread.items()}
    values |= _rates(served)
    values |= steady_rates(served)
    values |= _occupancy(served)
    values |= _energy(served)
    return values | goodput_metrics(served, goodput)


def _counts(served: Served) -> dict[str, float]:
    requests = served.requests
    done = ~requests.refused
    read = int(requests.prompt_tok[done].sum())
    cached = int(requests.cached_tok[done].sum())
    return {
        "requests": len(requests),
        "completed": int(done.sum()),
        "refused": int(requests.refused.sum()),
        "input_tok": read,
        "output_tok": int(requests.output_tok[done].sum()),
        "cached_tok": cached,
        "prefix_cache_hit_share": _ratio(cached, read),
        "preemptions": int(requests.preemptions[done].sum()),
        "recomputed_tok": int(requests.recomputed_tok[done].sum()),
    }


def _rates(served: Served) -> dict[str, float]:
    """Over the whole run, as vLLM's benchmark has them: requests, output tokens, prompt and output tokens."""
    done, time_s = ~served.requests.refused, served.end_s
    read, written = (int(x[done].sum()) for x in (served.requests.prompt_tok, served.requests.output_tok))
    return {
        "duration_s": time_s,
        "requests_per_s": _ratio(int(done.sum()), time_s),
        "output_tok_per_s": _ratio(written, time_s),
        "total_tok_per_s": _ratio(read + written, time_s),
    }


def steady_window(served: Served) -> tuple[float, float] | None:
    """[s] from when a tenth of the requests had finished until nine tenths had; None: nothing was steady.

    What is left out is the filling of an empty server and the emptying of a full one. A run of fewer than 20 requests,
    or in which that time is less than half of the run, as when all come at once, has no steady window.
    """
    finished = np.sort(served.requests.finished_s[~served.requests.refused])
    if len(finished) < STEADY_REQUESTS:
        return None
    first, last = (float(finished[int(share * len(finished)) - 1]) for share in STEADY_SHARES)
    return (first, last) if last - first >= STEADY_LEAST * served.end_s else None


def steady_rates(served: Served) -> dict[str, float]:
    """Rates in the steady window, NaN without one; prompts are counted at the rate of outputs.

    A request counts with the share of its tokens that it writes within, spread evenly from its first to its last one.
    """
    window = steady_window(served)
    names = ("steady_requests_per_s", "steady_output_tok_per_s", "steady_total_tok_per_s")
    if window is None:
        return {"steady_window_s": math.nan, **dict.fromkeys(names, math.nan)}
    start, end = window
    requests = served.requests
    done = ~requests.refused
    first, last, tokens = requests.first_token_s[done], requests.finished_s[done], requests.output_tok[done]
    finished = int(((last > start) & (last <= end)).sum())
    inside = np.clip(np.minimum(last, end) - np.maximum(first, start), 0.0, None)
    shares = np.divide(inside, last - first, out=np.zeros(len(inside)), where=last > first)
    written = float((tokens - 1) @ shares) + int(((first > start) & (first <= end)).sum())
    per_s = written / (end - start)
    read_per_written = _ratio(float(requests.prompt_tok[done].sum()), float(tokens.sum()))
    values = (finished / (end - start), per_s, per_s * (1.0 + read_per_written))
    return {"steady_window_s": end - start, **dict(zip(names, values))}


def running(steps: StepRecords) -> np.ndarray:
    """(S,) sequences in each step of a stretch, decoding or prefilling."""
    return steps.decode_sequences + steps.prefill_sequences


def kv_blocks_held(served: Served) -> tuple[np.ndarray, np.ndarray]:
    """(S,), (S,): distinct KV blocks held in the middle and at the end of each stretch.

    From those held in its first step on, every decoding sequence takes a block more per block_size steps.
    """
    steps = served.steps
    grown = steps.decode_sequences * (steps.steps - 1) / served.block_size
    full = float(max(served.kv_blocks, 1))
    return tuple(np.minimum(steps.kv_blocks + share * grown, full) for share in (0.5, 1.0))


def _occupancy(served: Served) -> dict[str, float]:
    """Time-means over the whole run, idle time counted as empty.

    The queue holds requests until their first step, a step under way included (its mean is exact, by Little's law); a
    request that a preemption sends back to it is not counted again.
    """
    steps, time_s, requests = served.steps, served.end_s, served.requests
    done = ~requests.refused
    waited_s = float((requests.scheduled_s - requests.engine_s)[done].sum())
    busy_s = float(steps.duration_s.sum())
    blocks = max(served.kv_blocks, 1)
    middle, last = kv_blocks_held(served)
    return {
        "batch_mean": _ratio(float(running(steps) @ steps.duration_s), time_s),
        "batch_max": int(running(steps).max(initial=0)),  # of one replica
        "queue_mean": _ratio(waited_s, time_s),
        "queue_max": int(waiting_at(requests, requests.engine_s[done]).max(initial=0)),
        "kv_share_mean": _ratio(float(middle @ steps.duration_s), time_s * blocks * served.replicas),
        "kv_share_max": float(last.max(initial=0.0)) / blocks,  # of the fullest replica
        "steps": int(steps.steps.sum()),
        "busy_share": _ratio(busy_s, time_s * served.replicas),
        "prefill_share_of_busy": _ratio(float(steps.duration_s[steps.prefill_tok > 0].sum()), busy_s),
    }


def _energy(served: Served) -> dict[str, float]:
    """Of all replicas from 0 to the end, idle time included."""
    done = ~served.requests.refused
    joules = served.energy_j()
    return {
        "energy_j": joules,
        "mean_power_w": _ratio(joules, served.end_s),
        "energy_j_per_output_tok": _ratio(joules, int(served.requests.output_tok[done].sum())),
        "energy_j_per_request": _ratio(joules, int(done.sum())),
    }


def good_requests(requests: RequestRecords, goodput: Goodput) -> np.ndarray:
    """(N,) bool: answered, and within every limit. A one-token output meets any TPOT, as in vLLM's benchmark."""
    found = latencies(requests)
    good = ~requests.refused
    for name, limit in goodput.limits().items():
        good &= np.nan_to_num(found[name], nan=0.0) <= limit
    return good


def goodput_metrics(served: Served, goodput: Goodput | None) -> dict[str, float]:
    """Good requests as a share of all that were sent, refused ones included, and per second; empty without limits."""
    if goodput is None or not goodput.limits():
        return {}
    good = int(good_requests(served.requests, goodput).sum())
    return {"good_share": _ratio(good, len(served.requests)), "good_requests_per_s": _ratio(good, served.end_s)}


def last_arrival_s(requests: RequestRecords) -> float:
    """When the last request was sent that was not refused; NaN if none was."""
    sent = requests.arrival_s[~requests.refused]
    return float(sent.max()) if len(sent) else math.nan


def waiting_at(requests: RequestRecords, times_s: np.ndarray) -> np.ndarray:
    """Requests (T,) in a queue and not yet scheduled for the first time, at each of `times_s` (T,)."""
    done = ~requests.refused
    queued, scheduled = np.sort(requests.engine_s[done]), np.sort(requests.scheduled_s[done])
    return np.searchsorted(queued, times_s, side="right") - np.searchsorted(scheduled, times_s, side="right")


def waiting_when_overloaded(requests: RequestRecords) -> int:
    """How many were waiting when the last request arrived, if the queue had been growing all along; else 0.

    Growing: its mean rises from each quarter of the time of arrivals to the next, and at the end a twentieth of all
    requests waits. Only requests that arrive over time by themselves (an open loop) can overload a server.
    """
    last = last_arrival_s(requests)
    if not last > 0.0:
        return 0
    moments = np.linspace(0.0, last, 401)[1:]
    queue = waiting_at(requests, moments)
    quarters = queue.reshape(4, -1).mean(axis=1)
    left = int(queue[-1])
    growing = bool((np.diff(quarters) > 0.0).all())
    return left if growing and left >= max(OVERLOAD_REQUESTS, OVERLOAD_SHARE * len(requests)) else 0


def _ratio(part: float, whole: float) -> float:
    """part / whole, NaN where there is no whole."""
    return part / whole if whole > 0 else math.nan
