"""What requests a point asks for, and when: the loads and trace readers of the simulator, so that both sides agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.collect.point import BackendError, Point
from simulator.workload import loads as synthetic
from simulator.workload.trace_files import read_trace
from simulator.workload.traffic import Traffic

LOADS = ("static_batch", "burst", "closed_loop", "open_loop")


@dataclass(frozen=True)
class TraceChoice:
    """A trace whose lengths and times replace those of the points. `speed`: times are divided by it."""

    path: str
    format: str | None = None
    speed: float | None = None


def traffic_of(point: Point, seed: int, trace: TraceChoice | None = None, shared_prefix_tok: int = 0) -> Traffic:
    """The requests of `point`; the same seed gives the same.

    `shared_prefix_tok`: so many of the input tokens are the same in all prompts. UserError for lengths and rates that
    no request can have, BackendError for a point that contradicts itself.
    """
    rng = np.random.default_rng(seed)
    _check(point, trace)
    if trace is not None:
        return _from_trace(point, trace, rng)
    prompt: synthetic.Prompts = point.input_tok
    if shared_prefix_tok:
        if not 0 < shared_prefix_tok < point.input_tok:
            raise BackendError(
                f"shared_prefix_tok: found {shared_prefix_tok}, expected less than the {point.input_tok} input tokens"
            )
        prompt = synthetic.SharedPrefix(point.input_tok - shared_prefix_tok, shared_prefix_tok)
    if point.load == "static_batch":
        return synthetic.static_batch(point.concurrency, prompt, point.output_tok, rng)
    if point.load == "burst":
        return synthetic.burst(point.num_requests, prompt, point.output_tok, rng)
    if point.load == "closed_loop":
        return synthetic.closed_loop(point.concurrency, point.num_requests, prompt, point.output_tok, rng)
    return synthetic.open_loop(point.request_rate_rps, point.num_requests, prompt, point.output_tok, rng)


def _check(point: Point, trace: TraceChoice | None) -> None:
    if point.load not in LOADS:
        raise BackendError(f"load '{point.load}': expected one of {', '.join(LOADS)}")
    if point.load == "static_batch" and point.num_requests != point.concurrency:
        raise BackendError(
            f"static_batch of {point.concurrency}: found {point.num_requests} requests, expected as many as the batch"
        )
    if point.load == "open_loop" and point.request_rate_rps is None and trace is None:
        raise BackendError("load 'open_loop': found neither a request rate nor a trace, expected one of them")
    if point.load != "open_loop" and point.request_rate_rps is not None:
        raise BackendError(f"load '{point.load}' has no request rate, found {point.request_rate_rps:g}/s")


def _from_trace(point: Point, trace: TraceChoice, rng: np.random.Generator) -> Traffic:
    """The first requests of the trace. Open loop: at its times, or at the point's mean rate with its gaps."""
    how: dict = {}
    if point.load == "closed_loop":
        how["clients"] = point.concurrency
    elif point.load == "open_loop":
        how["speed"], how["rate_per_s"] = trace.speed, point.request_rate_rps
    else:
        how["arrivals"] = "burst"
    return read_trace(trace.path, rng, format=trace.format, requests=point.num_requests, repeat=True, **how)
