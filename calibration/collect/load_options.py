"""What --load, --batch, --rate, --trace and their companions ask for together, and what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibration.collect.grid import LOADS, TRACES, Grid
from calibration.collect.loads import Trace, open_trace, requests_at
from simulator.errors import UserError


@dataclass(frozen=True)
class Load:
    """`grid` None: all points are chosen. A grid of an open loop without rates: those are chosen."""

    kind: str
    grid: Grid | None
    trace: Trace | None


def load_of(options: Mapping[str, Any], backend: str) -> Load:
    """The load that the options of the command ask for. UserError in one sentence for a contradiction."""
    if options["trace"] is not None and backend not in TRACES:
        raise UserError(f"back-end {backend} sends requests of its own, expected --backend {TRACES[0]} with --trace")
    kind = _kind(options, backend)
    _check_sizes(options, kind)
    _check_trace(options, kind)
    trace = None
    if options["trace"] is not None:
        trace = open_trace(options["trace"], options["trace_format"], options["trace_speed"], _answers(options))
    grid = _grid(options, kind) if trace is None else _traced_grid(options, kind, trace)
    if grid is not None and options["held_out"]:
        raise UserError("--held-out is given with a grid of your own, expected one or the other")
    return Load(kind, grid, trace)


def _kind(options: Mapping[str, Any], backend: str) -> str:
    """The kind of load: as given, else as the other options say it."""
    if options["batch"] and options["rate"]:
        raise UserError(
            "--batch and --rate contradict each other: requests wait for answers or come by themselves, expected one"
        )
    why, kind = "", options["load"]
    if kind is None and options["rate"]:
        why, kind = " (--rate)", "open_loop"
    elif kind is None and options["trace"] is not None:
        why, kind = " (--trace without --batch)", "open_loop"
        if options["batch"]:
            why, kind = " (--trace with --batch)", "closed_loop"
    kind = kind or LOADS[backend][0]
    if kind not in LOADS[backend]:
        raise UserError(f"back-end {backend} runs {', '.join(LOADS[backend])}, found load {kind}{why}")
    return kind


def _check_sizes(options: Mapping[str, Any], kind: str) -> None:
    if options["rate"] and kind != "open_loop":
        raise UserError(f"--rate goes with --load open_loop, found --load {kind}")
    if options["batch"] and kind == "open_loop":
        raise UserError("--batch has no use in an open loop, expected --rate: requests per second")
    count = options["num_requests"]
    if count is None:
        return
    if kind in ("static_batch", "burst"):
        raise UserError(f"--num-requests has no use with --load {kind}: --batch says how many requests there are")
    if kind == "closed_loop" and not options["batch"]:
        raise UserError("--num-requests is given without --batch, expected the numbers of clients beside it")
    if kind == "closed_loop" and count < max(options["batch"]):
        raise UserError(f"--num-requests {count} is less than the {max(options['batch'])} clients of --batch")


def _check_trace(options: Mapping[str, Any], kind: str) -> None:
    if options["trace"] is None:
        for name in ("trace_format", "trace_speed"):
            if options[name] is not None:
                raise UserError(f"--{name.replace('_', '-')} says how to read a trace, expected --trace beside it")
        return
    if kind == "static_batch":
        raise UserError("--trace goes with --load open_loop, closed_loop or burst, found static_batch")
    if options["input_tok"]:
        raise UserError("--trace has its own prompt lengths, expected no --input-tok beside it")
    if kind != "open_loop" and not options["batch"]:
        what = "how many requests are sent at once" if kind == "burst" else "how many clients send the requests"
        raise UserError(f"--trace with --load {kind} needs --batch: {what}")
    if options["trace_speed"] is None:
        return
    if kind != "open_loop":
        raise UserError(f"--trace-speed changes the times of the trace, which --load {kind} does not keep")
    if options["rate"]:
        raise UserError("--trace-speed and --rate both change the times of the trace, expected one of them")


def _answers(options: Mapping[str, Any]) -> int | None:
    """One length for all answers of a trace; None: those of the file."""
    sizes = options["output_tok"] or (None,)
    if len(sizes) > 1:
        raise UserError("--output-tok gives answers of a trace one length, expected a single number beside --trace")
    return sizes[0]


def _traced_grid(options: Mapping[str, Any], kind: str, trace: Trace) -> Grid:
    count, rates = options["num_requests"], options["rate"] or ()
    if kind != "open_loop":
        return Grid(options["batch"], (1,), (1,), num_requests=count)
    if not rates and trace.rate_rps is None:
        raise UserError(f"trace '{trace.name}' has no times, expected --rate, or --batch for clients that wait")
    if not rates:
        count = count or min(trace.requests, requests_at(trace.rate_rps))
    return Grid((1,), (1,), (1,), rates or (None,), count)


def _grid(options: Mapping[str, Any], kind: str) -> Grid | None:
    """The user's grid; None: the points are chosen. UserError when only part of one is given."""
    lengths = {"--input-tok": options["input_tok"], "--output-tok": options["output_tok"]}
    if kind == "open_loop":
        missing = [name for name, sizes in lengths.items() if not sizes]
        if missing:
            raise UserError(
                f"an open loop needs {' and '.join(missing)}, or --trace; without --rate the rates are chosen"
            )
        return Grid((1,), *lengths.values(), options["rate"] or (), options["num_requests"])
    axes = {"--batch": options["batch"], **lengths}
    given = [name for name, sizes in axes.items() if sizes]
    if not given:
        return None
    missing = [name for name in axes if name not in given]
    if missing:
        raise UserError(f"{given[0]} is given without {missing[0]}, expected all of {', '.join(axes)} or none")
    return Grid(*axes.values(), num_requests=options["num_requests"])
