"""From options to traffic: what arrives, or one sentence about what is missing or contradicts itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from simulator.cli.traffic_options import DEFAULT_REQUESTS
from simulator.errors import UserError
from simulator.traffic.metrics import Goodput
from simulator.workload import loads
from simulator.workload.arrivals import Arrivals, Burst, Constant, Gamma, Poisson, parse_arrivals
from simulator.workload.lengths import Lengths, parse_lengths
from simulator.workload.trace_files import read_trace
from simulator.workload.traffic import Traffic

T = TypeVar("T")

FLAGS = {"input_lengths": "--input", "output_lengths": "--output", "repeat": "--repeat"}
TRACE_ONLY = ("trace_format", "window", "time_scale", "trace_rate", "repeat", "trace_block_tok")
SHARING = ("shared_prefix_tok", "prefix_groups")
# Kind of load -> options that it has no use for.
UNUSED = {
    "open_loop": ("concurrency",),
    "closed_loop": ("rate", "burstiness"),
    "burst": ("rate", "burstiness", "concurrency"),
    "static_batch": ("rate", "burstiness"),
    "parallel_sampling": ("rate", "burstiness", *SHARING),
}
GOODPUT = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}  # vLLM's name: ours


def build_traffic(values: Mapping[str, Any]) -> Traffic:
    """What arrives. UserError when options are missing or contradict each other."""
    rng = np.random.default_rng(values["seed"])
    if values["trace"] is not None:
        return _traced(values, rng)
    _refuse(values, TRACE_ONLY, "is for a --trace")
    load = _load(values)
    _refuse(values, UNUSED[load], f"has no use with --load {load}")
    missing = [flag(name) for name in ("input_lengths", "output_lengths") if values[name] is None]
    if missing:
        raise UserError(
            f"missing {' and '.join(missing)}: the lengths of prompts and answers, as 1024 or uniform:512:1024"
        )
    prompt, output = _prompts(values), _lengths(values, "output_lengths")
    if load == "parallel_sampling":
        return loads.parallel_sampling(_together(values, "samples of one prompt"), prompt, output, rng)
    if load == "static_batch":
        return loads.static_batch(_together(values, "the batch"), prompt, output, rng)
    count = values["requests"] or DEFAULT_REQUESTS
    if load == "burst":
        return loads.burst(count, prompt, output, rng)
    if load == "closed_loop":
        clients = _needed(values, "concurrency", "the number of clients")
        return loads.closed_loop(clients, count, prompt, output, rng)
    return loads.open_loop(arrivals(values), count, prompt, output, rng)


def _prompts(values: Mapping[str, Any]) -> loads.Prompts:
    lengths, tokens, groups = _lengths(values, "input_lengths"), values["shared_prefix_tok"], values["prefix_groups"]
    if tokens:
        return loads.SharedPrefix(lengths, tokens, groups or 1)
    if groups is not None and groups > 1:
        raise UserError("--prefix-groups needs --shared-prefix-tok: how many tokens prompts of a group have in common")
    return lengths


def _lengths(values: Mapping[str, Any], name: str) -> Lengths | None:
    """The lengths behind an option; None when it is not given."""
    if values[name] is None:
        return None
    return _named(flag(name), parse_lengths, values[name])


def _named(option: str, read: Callable[..., T], *args: Any) -> T:
    """`read(*args)`; its complaint begins with the option that it is about."""
    try:
        return read(*args)
    except UserError as error:
        raise UserError(f"{option}: {str(error).removeprefix('arrivals: ')}") from None


def flag(name: str) -> str:
    """How the option behind a value is written."""
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def _load(values: Mapping[str, Any]) -> str:
    """The kind of load: as given, or as the other options say it."""
    if values["load"] is not None:
        return values["load"]
    if values["rate"] is not None and values["concurrency"] is not None:
        raise UserError(
            "--rate and --concurrency contradict each other: requests arrive by themselves or wait for answers"
        )
    if values["rate"] is not None:
        return "open_loop"
    if values["concurrency"] is not None:
        return "closed_loop"
    raise UserError("missing what arrives: --rate, --concurrency, --trace or --load")


def _together(values: Mapping[str, Any], what: str) -> int:
    """How many requests come together: --concurrency, as the measured records have it, or --requests."""
    given = {name: values[name] for name in ("concurrency", "requests") if values[name] is not None}
    if len(set(given.values())) > 1:
        raise UserError(
            f"--concurrency {given['concurrency']} and --requests {given['requests']} both say how large {what} is"
        )
    if not given:
        raise UserError(f"missing --concurrency: how many requests are {what}")
    return next(iter(given.values()))


def arrivals(values: Mapping[str, Any]) -> Arrivals:
    """The process behind --rate, with --burstiness put in."""
    process = _named("--rate", parse_arrivals, _needed(values, "rate", "requests per second"))
    burstiness = values["burstiness"]
    if burstiness is None:
        return process
    if not isinstance(process, Poisson):
        raise UserError(f"--burstiness goes with a plain --rate as 4, found --rate {values['rate']}")
    return Gamma(process.rate_per_s, burstiness)


def _needed(values: Mapping[str, Any], name: str, what: str) -> Any:
    if values[name] is None:
        raise UserError(f"missing {flag(name)}: {what}")
    return values[name]


def _refuse(values: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    given = [flag(name) for name in names if values[name] not in (None, False)]
    if given:
        raise UserError(f"{given[0]} {why}")


def _traced(values: Mapping[str, Any], rng: np.random.Generator) -> Traffic:
    """Requests of a trace; with --rate or --concurrency at other times than it says."""
    _refuse(values, ("input_lengths", *SHARING), "is not for a --trace, which has its own prompts")
    load = values["load"]
    if load not in (None, "open_loop", "closed_loop"):
        raise UserError(
            f"--load {load} is not for a --trace; give --rate or --concurrency for other times than its own"
        )
    if values["rate"] is not None or values["concurrency"] is not None:
        load = _load(values)
        _refuse(values, UNUSED[load], f"has no use with --load {load}")
    elif load == "closed_loop":
        raise UserError("missing --concurrency: the number of clients")
    else:
        _refuse(values, ("burstiness",), "goes with --rate")
    pace = [flag(name) for name in ("time_scale", "trace_rate") if values[name] is not None]
    other = [flag(name) for name in ("rate", "concurrency") if values[name] is not None]
    if pace and other:
        raise UserError(f"{pace[0]} changes the times of the trace, which {other[0]} replaces; expected one of the two")
    if len(pace) > 1:
        raise UserError(f"{pace[0]} and {pace[1]} both change the times of the trace; expected one of the two")
    return read_trace(
        values["trace"],
        rng,
        format=values["trace_format"],
        requests=values["requests"],
        repeat=values["repeat"],
        window_s=_window(values["window"]),
        speed=None if values["time_scale"] is None else 1.0 / values["time_scale"],
        rate_per_s=values["trace_rate"],
        arrivals=None if values["rate"] is None else arrivals(values),
        clients=values["concurrency"] or 0,
        output=_lengths(values, "output_lengths"),
        **({} if values["trace_block_tok"] is None else {"block_tok": values["trace_block_tok"]}),
    )


def _window(text: str | None) -> tuple[float, float] | None:
    """(from, to) in seconds out of "600:1200", "600:" or ":1200"."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        start_s, end_s = float(first or 0.0), float(last or math.inf)
    except ValueError:
        start_s, end_s = math.nan, math.nan
    if not colon or not (first or last) or not 0.0 <= start_s < end_s:
        expected = "FROM:TO in seconds with 0 <= FROM < TO, like 600:1200, or 600: up to the end"
        raise UserError(f"--window: found '{text}', expected {expected}")
    return start_s, end_s


def asked_rate(values: Mapping[str, Any]) -> tuple[float | None, float]:
    """(requests per second, burstiness) as vLLM's benchmark would have been asked; (None, 1) where no rate says it."""
    if values["rate"] is None:
        return None, 1.0
    process = arrivals(values)
    if isinstance(process, Burst):
        return math.inf, 1.0
    if isinstance(process, Gamma):
        return process.rate_per_s, process.burstiness
    if isinstance(process, (Poisson, Constant)):
        return process.rate_per_s, 1.0 if isinstance(process, Poisson) else math.inf
    return None, 1.0


def goodput(texts: tuple[str, ...]) -> Goodput | None:
    """Limits from ("ttft:500", "tpot:50"), in milliseconds; several in one text are parted by commas or blanks."""
    limits: dict[str, float] = {}
    for text in " ".join(texts).replace(",", " ").split():
        name, _, value = text.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if name not in GOODPUT or not (math.isfinite(milliseconds) and milliseconds > 0.0):
            raise UserError(
                f"--goodput: found '{text}', expected ttft:MS, tpot:MS or e2el:MS with milliseconds above 0"
            )
        if GOODPUT[name] in limits:
            raise UserError(f"--goodput: {name} is given twice")
        limits[GOODPUT[name]] = milliseconds / 1e3
    return Goodput(**limits) if limits else None
