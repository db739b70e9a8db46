"""Mooncake's own traces: one JSON object per request, with the hashes of its prompt's blocks."""

from __future__ import annotations

import numpy as np

from simulator.workload.shared_blocks import parts_of_hashes
from simulator.workload.trace_rows import Rows
from simulator.workload.trace_text import (
    MAX_TIME_S,
    TraceText,
    check_ascending,
    json_number,
    json_tokens,
    read_json_lines,
    shown,
)


def read_mooncake_jsonl(source: TraceText, block_tok: int = 512) -> Rows:
    """`timestamp` in milliseconds, `input_length`, `output_length` and `hash_ids`, one per block of `block_tok` tokens.

    Equal hashes are equal blocks; the last block of a prompt may be partial. Either all requests have hashes or none.
    """
    entries = read_json_lines(source)
    hashed = "hash_ids" in entries[0]
    times_ms, prompts, outputs, hashes = [], [], [], []
    for row, entry in enumerate(entries, 1):
        times_ms.append(json_number(source, row, entry, "timestamp", 0, 1000.0 * MAX_TIME_S))
        prompts.append(json_tokens(source, row, entry, "input_length"))
        outputs.append(json_tokens(source, row, entry, "output_length"))
        if hashed:
            hashes.append(_hash_ids(source, row, entry, prompts[-1], block_tok))
        elif "hash_ids" in entry:
            raise source.error("hash_ids", "none, as in the rows before", row)
    check_ascending(source, times_ms, "timestamp")
    times_s = np.array(times_ms, dtype=float) / 1000.0
    return Rows(
        prompt_tok=np.array(prompts, dtype=np.int64),
        output_tok=np.array(outputs, dtype=np.int64),
        arrival_s=times_s - times_s[0],
        shared_prefix=parts_of_hashes(hashes, prompts, block_tok) if hashed else None,
        own_prefixes=True,
    )


def _hash_ids(source: TraceText, row: int, entry: dict, prompt_tok: int, block_tok: int) -> list[int]:
    ids = entry.get("hash_ids")
    if not isinstance(ids, list) or not all(type(block) is int for block in ids):
        raise source.error(shown(ids), "a list of whole numbers", row, "hash_ids")
    blocks = -(-prompt_tok // block_tok)
    if len(ids) != blocks:
        expected = f"{blocks:,} for {prompt_tok:,} tokens in blocks of {block_tok:,}"
        raise source.error(f"{len(ids):,} hashes", expected, row, "hash_ids")
    return ids
