"""What requests a point asks for, and when: the loads and trace readers of the simulator, so that both sides agree."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.collect.point import BackendError, Point
from simulator.errors import UserError
from simulator.workload import loads as synthetic
from simulator.workload.builtin_traces import builtin_trace
from simulator.workload.trace_files import read_trace
from simulator.workload.traffic import Traffic

LOADS = ("static_batch", "burst", "closed_loop", "open_loop")
ROUNDS = 4  # requests of each client of a closed loop
# An open loop lasts about this long where nobody says how many requests it has, but has at least so many and at most.
OPEN_LOOP_S, FEWEST, MOST = 60.0, 64, 1000
# What the trace reader calls its options -> what they are called here.
_OPTIONS = {
    "(--output)": "(--output-tok)", "(--concurrency)": "(--batch)", "(--time-scale)": "(--trace-speed)",
    "(--trace-rate)": "(--rate)",
}  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """A trace whose lengths and times replace those of the points.

    `rate_rps`: mean rate at the times of the file, divided by `speed` already; None: it has no times. `output_tok`:
    answers of this length instead of those of the file. `requests`: how many the file has.
    """

    path: str
    name: str
    sha256: str
    requests: int
    rate_rps: float | None
    format: str | None = None
    speed: float | None = None
    output_tok: int | None = None

    @property
    def length_spread(self) -> str:
        """As records state it."""
        return f"dataset:{self.name}"


def open_trace(
    path: str, format: str | None = None, speed: float | None = None, output_tok: int | None = None
) -> Trace:
    """What a file or a built-in trace holds. UserError in one sentence for what cannot be read."""
    how = {"format": format, "output": output_tok}
    lengths = _read(path, **how, clients=1)
    rate = None
    try:
        times = _read(path, **how, speed=speed).arrival_s
    except UserError:  # all else was read before: it has no times
        if speed is not None:
            raise
    else:
        lasts_s = float(times[-1] - times[0])
        rate = (len(times) - 1) / lasts_s if lasts_s > 0.0 else math.inf
    sheet = builtin_trace(path)
    file = sheet.path if sheet else Path(path)
    stem = sheet.name if sheet else file.name.removesuffix(".gz").rpartition(".")[0] or file.name
    return Trace(
        path=path,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", stem),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        requests=len(lengths),
        rate_rps=rate,
        format=format,
        speed=speed,
        output_tok=output_tok,
    )


def _read(path: str, *, output: int | None, seed: int | np.random.Generator = 0, **how) -> Traffic:
    """`read_trace`, whose sentences name the options of this command."""
    try:
        return read_trace(path, np.random.default_rng(seed), output=output, **how)
    except UserError as error:
        text = str(error)
        for theirs, ours in _OPTIONS.items():
            text = text.replace(theirs, ours)
        raise UserError(text) from None


def requests_at(rate_rps: float) -> int:
    """Requests of an open loop at this rate where nobody says how many."""
    return max(FEWEST, math.ceil(min(MOST, OPEN_LOOP_S * rate_rps)))


def traced(points: Sequence[Point], trace: Trace) -> list[Point]:
    """Points with the lengths of the trace: the means of the requests that each of them sends, and the longest."""
    out = []
    for point in points:
        sent = traffic_of(point, 0, trace)
        out.append(
            replace(
                point,
                input_tok=max(1, round(float(sent.prompt_tok.mean()))),
                output_tok=max(1, round(float(sent.output_tok.mean()))),
                longest_tok=int((sent.prompt_tok + sent.output_tok).max()),
                length_spread=trace.length_spread,
            )
        )
    return out


def traffic_of(point: Point, seed: int, trace: Trace | None = None, shared_prefix_tok: int = 0) -> Traffic:
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


def _check(point: Point, trace: Trace | None) -> None:
    if point.load not in LOADS:
        raise BackendError(f"load '{point.load}': expected one of {', '.join(LOADS)}")
    if point.load == "static_batch" and point.num_requests != point.concurrency:
        raise BackendError(
            f"static_batch of {point.concurrency}: found {point.num_requests} requests, expected as many as the batch"
        )
    if point.load == "open_loop" and point.request_rate_rps is None and (trace is None or trace.rate_rps is None):
        raise BackendError("load 'open_loop': found neither a request rate nor a trace with times, expected one")
    if point.load != "open_loop" and point.request_rate_rps is not None:
        raise BackendError(f"load '{point.load}' has no request rate, found {point.request_rate_rps:g}/s")


def _from_trace(point: Point, trace: Trace, rng: np.random.Generator) -> Traffic:
    """The first requests of the trace, which begins again where it has fewer.

    Open loop: at its times, or with its gaps at the point's mean rate; Poisson where the file has no times.
    """
    how: dict = {}
    if point.load == "closed_loop":
        how["clients"] = point.concurrency
    elif point.load != "open_loop":
        how["arrivals"] = "burst"
    elif trace.rate_rps is None:
        how["arrivals"] = point.request_rate_rps
    else:
        how["speed"], how["rate_per_s"] = trace.speed, point.request_rate_rps
    return _read(
        trace.path, seed=rng, format=trace.format, output=trace.output_tok, requests=point.num_requests, repeat=True,
        **how,
    )  # fmt: skip
