"""Traces and length sets as CSV: our own columns, Mooncake's counts of cached blocks, and Azure's public files."""

from __future__ import annotations

import re

import numpy as np

from simulator.workload.shared_blocks import parts_of_hit_counts
from simulator.workload.trace_rows import Rows
from simulator.workload.trace_text import Table, TraceText, read_table, shown
from simulator.workload.traffic import Parts

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_BLOCKS = "n_prefix_blocks_512tok"
MOONCAKE_SEEN = "derived_leading_blocks_seen_before"
MOONCAKE_BLOCK_TOK = 512
OPTIONAL_COLUMNS = ("priority", "prefix_id", "prefix_tok", MOONCAKE_BLOCKS, MOONCAKE_SEEN)

PRIORITY_LIMIT = 2**31 - 1
TIMESTAMP = re.compile(  # the years that int64 nanoseconds can hold
    r"((?:19[7-9]|2[01]\d)\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|\+00:00)?", re.ASCII
)
TIMESTAMP_FORM = "a time as 2023-11-16 18:15:46.6805900 (UTC)"


def read_own_csv(source: TraceText) -> Rows:
    """`t_s,input_tok,output_tok` and, where there are any, priority, prefix_id with prefix_tok, Mooncake's counts."""
    return _rows(read_table(source), timed=True)


def read_lengths_csv(source: TraceText) -> Rows:
    """`input_tok,output_tok` without times, and the same optional columns."""
    return _rows(read_table(source), timed=False)


def read_azure_csv(source: TraceText) -> Rows:
    """`TIMESTAMP,ContextTokens,GeneratedTokens` as Azure publishes them."""
    table = read_table(source)
    table.require(*AZURE_COLUMNS)
    return Rows(
        prompt_tok=table.tokens("ContextTokens"),
        output_tok=table.tokens("GeneratedTokens"),
        arrival_s=_timestamps(table, "TIMESTAMP"),
        assumptions=_ignored(table, AZURE_COLUMNS),
    )


def _rows(table: Table, timed: bool) -> Rows:
    needed = ("t_s", "input_tok", "output_tok") if timed else ("input_tok", "output_tok")
    table.require(*needed)
    arrival_s = table.times("t_s") if timed else None
    prompt_tok, output_tok = table.tokens("input_tok"), table.tokens("output_tok")
    prefix, assumption = _shared_prefix(table, prompt_tok, output_tok)
    priority = None
    if "priority" in table.columns:
        priority = table.whole("priority", -PRIORITY_LIMIT, PRIORITY_LIMIT)
    return Rows(
        prompt_tok=prompt_tok,
        output_tok=output_tok,
        arrival_s=None if arrival_s is None else arrival_s - arrival_s[0],
        shared_prefix=prefix,
        priority=priority,
        own_prefixes=MOONCAKE_SEEN in table.columns,
        assumptions=(*assumption, *_ignored(table, (*needed, *OPTIONAL_COLUMNS))),
    )


def _shared_prefix(
    table: Table, prompt_tok: np.ndarray, output_tok: np.ndarray
) -> tuple[tuple[Parts, ...] | None, tuple[str, ...]]:
    """(shared prefix of every prompt or None, what was assumed)."""
    named = {"prefix_id", "prefix_tok"} & table.columns.keys()
    counted = {MOONCAKE_BLOCKS, MOONCAKE_SEEN} & table.columns.keys()
    if named and counted:
        expected = "either prefix_id and prefix_tok or Mooncake's block counts"
        raise table.source.error(f"the columns {', '.join(table.columns)}", expected, row=1)
    if named:
        table.require("prefix_id", "prefix_tok")
        return _named_prefixes(table, prompt_tok), ()
    if counted:
        table.require(MOONCAKE_BLOCKS, MOONCAKE_SEEN)
        return _counted_prefixes(table, prompt_tok, output_tok)
    return None, ()


def _named_prefixes(table: Table, prompt_tok: np.ndarray) -> tuple[Parts, ...]:
    """Prompts with one prefix_id share their first prefix_tok tokens; 0 tokens: nothing shared."""
    prefix_tok = table.tokens("prefix_tok", low=0)
    ids = [cell.strip() for cell in table.columns["prefix_id"]]
    long = np.flatnonzero(prefix_tok > prompt_tok)
    if long.size:
        at = int(long[0])
        raise table.error(at, "prefix_tok", f"at most the {prompt_tok[at]:,} tokens of the prompt")
    known: dict[tuple[str, int], Parts] = {}  # one object for all requests with the same prefix
    parts: list[Parts] = []
    for row, (name, tokens) in enumerate(zip(ids, prefix_tok.tolist())):
        if tokens and not name:
            raise table.error(row, "prefix_id", f"the name of a prefix of {tokens:,} tokens", "an empty cell")
        if (name, tokens) not in known:
            known[name, tokens] = ((("prefix", name), tokens),) if tokens else ()
        parts.append(known[name, tokens])
    return tuple(parts)


def _counted_prefixes(
    table: Table, prompt_tok: np.ndarray, output_tok: np.ndarray
) -> tuple[tuple[Parts, ...], tuple[str, ...]]:
    """Mooncake's counts: which earlier prompt a shared beginning comes from is chosen by a rule, and that is said."""
    blocks = table.tokens(MOONCAKE_BLOCKS)
    wrong = np.flatnonzero(blocks != -(-prompt_tok // MOONCAKE_BLOCK_TOK))
    if wrong.size:
        at = int(wrong[0])
        expected = f"{-(-int(prompt_tok[at]) // MOONCAKE_BLOCK_TOK):,} blocks for a prompt of {prompt_tok[at]:,} tokens"
        raise table.error(at, MOONCAKE_BLOCKS, expected)
    seen = table.tokens(MOONCAKE_SEEN, low=0)
    many = np.flatnonzero(seen > blocks)
    if many.size:
        at = int(many[0])
        raise table.error(at, MOONCAKE_SEEN, f"at most the {blocks[at]:,} blocks of the prompt")
    parts = parts_of_hit_counts(prompt_tok.tolist(), output_tok.tolist(), seen.tolist(), MOONCAKE_BLOCK_TOK)
    if isinstance(parts, int):
        raise table.error(parts, MOONCAKE_SEEN, "no more blocks than an earlier prompt has")
    return parts, (
        "the file says how many leading 512-token blocks of a prompt occurred earlier, not in which request: taken is "
        "the earlier prompt with exactly so many whole blocks that with its answer comes closest to this prompt, else "
        "the latest with enough blocks; hits of an unlimited cache are exact, those of a small one approximate",
    )


def _timestamps(table: Table, column: str) -> np.ndarray:
    """Seconds since the first row, float array of shape (rows,); exact to the 100 ns that the files resolve."""
    cells = []
    for index, cell in enumerate(table.columns[column]):
        found = TIMESTAMP.fullmatch(cell.strip())
        if found is None:
            raise table.error(index, column, TIMESTAMP_FORM)
        cells.append(found.group(1))
    try:
        ticks = np.array(cells, dtype="datetime64[ns]").astype(np.int64)
    except ValueError:
        index = next(i for i, cell in enumerate(cells) if not _is_date(cell))
        raise table.error(index, column, TIMESTAMP_FORM) from None
    table.check_ascending(ticks, column)
    return (ticks - ticks[0]) / 1e9


def _is_date(cell: str) -> bool:
    try:
        np.datetime64(cell, "ns")
    except ValueError:
        return False
    return True


def _ignored(table: Table, used: tuple[str, ...]) -> tuple[str, ...]:
    others = [column for column in table.columns if column not in used]
    return (f"columns of the trace that are not used: {', '.join(map(shown, others))}",) if others else ()
