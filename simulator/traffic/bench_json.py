"""A result under the names that `vllm bench serve --save-result` gives to the same quantities.

Names and meanings are those of `vllm/benchmarks/serve.py` (read at vLLM commit 009e6d4); times there are milliseconds,
but seconds in the lists of the detailed form. What a simulation does not have (generated texts, tokenizer) is left out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.traffic.metrics import distribution, last_arrival_s, latencies, token_gaps
from simulator.traffic.result import TrafficResult
from simulator.traffic.served import Served

LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2el": "e2e_s"}  # vLLM's name: ours


def bench_json(
    result: TrafficResult,
    request_rate: float | None = None,
    burstiness: float = 1.0,
    date: str | None = None,
    detail: bool = False,
) -> dict[str, Any]:
    """The object that vLLM's benchmark would have written.

    `request_rate`: as asked for [1/s]; None: the mean rate of arrivals, "inf" where all come at once or clients wait
    for answers. `date`: as the caller states it (vLLM writes %Y%m%d-%H%M%S); None: no date, so that the same run gives
    the same bytes. `detail`: with the lists of `--save-detailed`, one entry per request.
    """
    figures = result.summary()
    out: dict[str, Any] = {} if date is None else {"date": date}
    out |= {
        "endpoint_type": "tokenflight",
        "backend": "tokenflight",
        "label": None,
        "model_id": result.model,
        "tokenizer_id": result.model,
        "num_prompts": figures["requests"],
        "request_rate": _rate(result, request_rate),
        "burstiness": burstiness,
        "max_concurrency": result.clients or None,
        "duration": figures["duration_s"],
        "completed": figures["completed"],
        "failed": figures["refused"],
        "total_input_tokens": figures["input_tok"],
        "total_output_tokens": figures["output_tok"],
        "request_throughput": figures["requests_per_s"],
        "request_goodput": figures.get("good_requests_per_s"),
        "output_throughput": figures["output_tok_per_s"],
        "total_token_throughput": figures["total_tok_per_s"],
        "max_concurrent_requests": peak_concurrency(result.served),
    }
    for name, spread in _spreads(result.served).items():
        out[f"mean_{name}_ms"] = 1e3 * spread["mean"]
        out[f"median_{name}_ms"] = 1e3 * spread["p50"]
        out[f"std_{name}_ms"] = 1e3 * spread["std"]
        out[f"p90_{name}_ms"] = 1e3 * spread["p90"]
        out[f"p99_{name}_ms"] = 1e3 * spread["p99"]
    return out | (_detail(result.served) if detail else {})


def _rate(result: TrafficResult, asked: float | None) -> float | str:
    if asked is not None:
        return asked if math.isfinite(asked) else "inf"
    last = last_arrival_s(result.served.requests)
    return "inf" if result.clients or not last > 0.0 else len(result.served.requests) / last


def _spreads(served: Served) -> dict[str, dict[str, float]]:
    found = latencies(served.requests)
    return {
        name: token_gaps(served) if name == "itl" else distribution(found[ours]) for name, ours in LATENCIES.items()
    }


def peak_concurrency(served: Served) -> int:
    """Most requests on their way at once, each from its arrival to just before its last token."""
    done = ~served.requests.refused
    sent, finished = np.sort(served.requests.arrival_s[done]), np.sort(served.requests.finished_s[done])
    if not len(sent):
        return 0
    under_way = np.arange(1, len(sent) + 1) - np.searchsorted(finished, sent, side="right")
    return int(under_way.max())


def _detail(served: Served) -> dict[str, list[Any]]:
    """Lists with an entry per request, in order of submission; a refused one has zeros and an error, as in vLLM."""
    requests = served.requests
    found = latencies(requests)
    return {
        "input_lens": requests.prompt_tok.tolist(),
        "output_lens": np.where(requests.refused, 0, requests.output_tok).tolist(),
        "ttfts": np.nan_to_num(found["ttft_s"]).tolist(),
        "itls": request_gaps(served),
        "latencies": np.nan_to_num(found["e2e_s"]).tolist(),
        "start_times": requests.arrival_s.tolist(),
        "errors": np.where(requests.refused, "longer than max_model_len or than the KV cache", "").tolist(),
    }


def request_gaps(served: Served) -> list[list[float]]:
    """Gaps [s] between the tokens of each request, which sum to finished_s - first_token_s.

    They are the lengths of its replica's steps while it wrote, where it wrote a token in each of them; a request that
    was preempted, or wrote several tokens in a step, gets equal gaps.
    """
    requests, steps = served.requests, served.steps
    several = np.flatnonzero(~requests.refused & (requests.output_tok > 1))
    gaps: list[list[float]] = [[] for _ in range(len(requests))]
    for replica in np.unique(requests.replica[several]).tolist():
        rows = slice(*np.searchsorted(steps.replica, (replica, replica + 1)))
        ends = _step_ends(steps.start_s[rows], steps.duration_s[rows], steps.steps[rows])
        own = several[requests.replica[several] == replica]
        # What a client sees is later than the end of the step by less than a step: the step is the last before it.
        slack = 1e-9 * max(served.end_s, 1.0)
        first, last = (
            np.searchsorted(ends, times[own] + slack, side="right") - 1
            for times in (requests.first_token_s, requests.finished_s)
        )
        for i, low, high in zip(own.tolist(), first.tolist(), last.tolist()):
            gaps[i] = _gaps(
                ends, low, high, requests.output_tok[i] - 1, requests.finished_s[i] - requests.first_token_s[i]
            )
    return gaps


def _step_ends(start_s: np.ndarray, duration_s: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """When each single step ends; the steps of a stretch are taken to be equally long."""
    steps = steps.astype(np.int64)
    number = np.arange(1, int(steps.sum()) + 1) - np.repeat(np.cumsum(steps) - steps, steps)
    return np.repeat(start_s, steps) + np.repeat(duration_s / np.maximum(steps, 1), steps) * number


def _gaps(ends: np.ndarray, low: int, high: int, count: int, whole_s: float) -> list[float]:
    if low >= 0 and high - low == count:
        found = np.diff(ends[low : high + 1])
        total = float(found.sum())
        if total > 0.0:
            return (found * (whole_s / total)).tolist()
    return [float(whole_s) / int(count)] * int(count)
