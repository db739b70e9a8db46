"""Traffic from files: the format is recognised, rows are checked, a part of them is chosen and set in time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from simulator.errors import UserError, unknown_name
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.builtin_traces import builtin_trace, list_traces
from simulator.workload.csv_traces import AZURE_COLUMNS, read_azure_csv, read_lengths_csv, read_own_csv
from simulator.workload.lengths import Lengths, parse_lengths
from simulator.workload.loads import check_count
from simulator.workload.mooncake_jsonl import read_mooncake_jsonl
from simulator.workload.prompt_files import OUTPUT_TOK, PROMPT_TOK, read_prompts_csv, read_prompts_jsonl, read_sharegpt
from simulator.workload.trace_rows import Rows
from simulator.workload.trace_selection import check_selection, first_or_repeated, in_window, paced
from simulator.workload.trace_text import TraceText, read_text, shown
from simulator.workload.traffic import Traffic, counted

READERS: dict[str, Callable[[TraceText], Rows]] = {
    "csv": read_own_csv,  # t_s,input_tok,output_tok; also with Mooncake's block counts
    "lengths": read_lengths_csv,  # input_tok,output_tok
    "azure": read_azure_csv,
    "mooncake": read_mooncake_jsonl,
    "sharegpt": read_sharegpt,
    "prompts-jsonl": read_prompts_jsonl,  # vLLM's custom data set, GuideLLM
    "prompts-csv": read_prompts_csv,  # GuideLLM
}

KNOWN = (
    "a CSV file with the columns t_s,input_tok,output_tok or input_tok,output_tok or TIMESTAMP,ContextTokens,"
    "GeneratedTokens or prompt,output_tokens_count; JSONL of Mooncake or with 'prompt'; or ShareGPT JSON"
)


def read_trace(
    path: str | os.PathLike,
    rng: np.random.Generator,
    *,
    format: str | None = None,
    requests: int | None = None,
    repeat: bool = False,
    window_s: tuple[float, float] | None = None,
    speed: float | None = None,
    rate_per_s: float | None = None,
    arrivals: Arrivals | str | float | None = None,
    clients: int = 0,
    output: Lengths | str | int | None = None,
    block_tok: int = 512,
) -> Traffic:
    """Traffic from a file or from a trace that ships with Tokenflight (`list_traces`).

    format: a key of `READERS`; None: recognised from the first line.
    window_s: only requests from this many seconds after the first row up to, not including, that many; the window's
        start becomes t = 0. Without one, t = 0 is the arrival of the first row.
    requests: the first N of them. `repeat`: when there are fewer, the trace begins again one mean gap after its last
        request, as often as needed. A file without times is drawn from (with replacement) when it has fewer.
    speed: requests come this many times as fast; rate_per_s: as fast as makes this their mean rate. Gaps keep their
        proportions.
    arrivals, clients: these times, or a closed loop of so many clients, instead of the times of the file; one of the
        two is needed where a file has none.
    output: answers of these lengths instead of those of the file; needed where a file has none.
    block_tok: tokens of one block of Mooncake's hash_ids.

    Raises `UserError`: one sentence with file, row, column, what was found and what was expected.
    """
    check_selection(requests, window_s, speed, rate_per_s)
    clients = check_count(clients, "number of clients") if clients != 0 else 0
    process = None if arrivals is None else parse_arrivals(arrivals)
    if process is not None and clients:
        raise UserError("traffic has either arrivals or clients, got both")
    retimed = process is not None or clients > 0
    if retimed and (speed is not None or rate_per_s is not None):
        raise UserError(
            "a speed (--time-scale) or a rate (--trace-rate) changes the times of a trace; expected no arrivals "
            "(--rate) and no clients (--concurrency) beside it, which replace them"
        )
    name, rows, title, said = _read(path, format, check_count(block_tok, "block size in tokens"))
    if rows.arrival_s is None and not retimed:
        raise UserError(
            f"trace file '{name}' has no times: expected arrivals (--rate) or clients (--concurrency) beside it"
        )
    selection_rng, arrival_rng, output_rng = rng.spawn(3)
    rows, selected = in_window(rows, window_s, name)
    rows, repeated = first_or_repeated(rows, requests, repeat, selection_rng, name)
    rows, written = _answers(rows, output, output_rng, name)
    rows, pace = paced(rows, speed, rate_per_s, name)
    replaced = ()
    if retimed:
        how = process.phrase() if process is not None else counted(clients, "client")
        replaced = (f"times of the trace are replaced by {how}",) if rows.arrival_s is not None else ()
        rows = replace(rows, arrival_s=None if process is None else process.times(len(rows), arrival_rng))
    return Traffic(
        prompt_tok=rows.prompt_tok,
        output_tok=rows.output_tok,
        arrival_s=rows.arrival_s,
        clients=clients,
        shared_prefix=rows.shared_prefix,
        priority=rows.priority,
        title=f"{title}: {counted(len(rows), 'request')}",
        assumptions=(*said, *rows.assumptions, *selected, *repeated, *written, *pace, *replaced),
    )


def _read(path: str | os.PathLike, format: str | None, block_tok: int) -> tuple[str, Rows, str, tuple[str, ...]]:
    """(name for messages, all rows, title, what a reader must know) of a file or a built-in trace."""
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"trace {name!r}: expected a path or one of {', '.join(sheet.name for sheet in list_traces())}")
    sheet = builtin_trace(name)
    file = sheet.path if sheet else Path(name)
    if not sheet and not os.path.exists(name) and os.sep not in name and not file.suffix:
        known = [known_sheet.name for known_sheet in list_traces()]
        raise unknown_name("trace", name, known, f"built in: {', '.join(known)}; or give the path of a file")
    source = read_text(file, name)
    if format is None:
        format = recognise(source)
    if format not in READERS:
        raise unknown_name("trace format", format, READERS, f"known: {', '.join(READERS)}")
    rows = read_mooncake_jsonl(source, block_tok) if format == "mooncake" else READERS[format](source)
    return name, rows, sheet.title if sheet else f"trace {file.name}", sheet.traps if sheet else ()


def recognise(source: TraceText) -> str:
    """The format of a trace file, from its first line: a key of `READERS`."""
    line = source.first_line()
    if line.startswith("["):
        return "sharegpt"
    if line.startswith("{"):
        return _recognise_json(source, line)
    header = {name.strip().strip('"') for name in line.split(",")}
    if header & set(AZURE_COLUMNS):
        return "azure"
    if "t_s" in header:
        return "csv"
    if header & {"input_tok", "output_tok"}:
        return "lengths"
    if header & {"prompt", PROMPT_TOK}:
        return "prompts-csv"
    raise source.error(f"the first line {shown(line)}", KNOWN, row=1)


def _recognise_json(source: TraceText, line: str) -> str:
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise source.error(f"bad JSON {shown(line)} ({error})", "one JSON object per line", row=1) from error
    if entry.keys() & {"timestamp", "input_length", "hash_ids"}:
        return "mooncake"
    if entry.keys() & {"prompt", PROMPT_TOK, *OUTPUT_TOK}:
        return "prompts-jsonl"
    raise source.error(f"the fields {', '.join(entry) or '(none)'}", KNOWN, row=1)


def _answers(
    rows: Rows, output: Lengths | str | int | None, rng: np.random.Generator, name: str
) -> tuple[Rows, tuple[str, ...]]:
    """`rows` with lengths of answers, and what to say about them."""
    if output is None:
        if rows.output_tok is None:
            raise UserError(
                f"trace file '{name}' has no lengths of answers: expected output lengths (--output) beside it"
            )
        return rows, ()
    lengths = parse_lengths(output)
    said = (f"lengths of answers of the trace are replaced by {lengths}",) if rows.output_tok is not None else ()
    return replace(rows, output_tok=lengths.sample(rng, len(rows))), said
